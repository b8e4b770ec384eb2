// A question as the page's controls hold it, and its answer.

const $request = ({ engine = "transformers", dtype = "auto", quantization = null, double_quant = false,
  kv_cache_dtype = "auto", attention = "sdpa", padded = false, cache_implementation = "dynamic",
  gpu_memory_utilization = null, batch_size, prompt_tokens, output_tokens }) =>
  $make($analytic$request.Request, {
    engine, dtype, quantization, double_quant, kv_cache_dtype, attention, padded, cache_implementation,
    batch_size, prompt_tokens, output_tokens,
    gpu_memory_utilization: gpu_memory_utilization === null ? null : $F(gpu_memory_utilization),
  });

// The estimate of a model on GPUs, as `ullage estimate` makes it; throws $UllageError where that refuses.
const $estimate = ({ model, gpu = null, gpus = 1, max_num_seqs = null, max_num_batched_tokens = null,
  enforce_eager = null, ...asked }) => {
  const device = gpu === null ? null : $gpus.at(gpu), request = $request(asked);
  const calibration = gpu === null || request.engine !== "transformers" ? null : $calibrations.get(gpu);
  const flags = $make($analytic$flags.Flags, { max_num_seqs, max_num_batched_tokens, enforce_eager });
  return $call($analytic$estimator.run, [$model(model), request], { flags, gpu: device, gpus, calibration });
};

const $json = (value) => {
  if (value instanceof $Dict) return Object.fromEntries(value.items().map(([key, held]) => [key, $json(held)]));
  if (Array.isArray(value)) return value.map($json);
  if (value instanceof $Float) return value.value;
  return typeof value === "bigint" ? Number(value) : value;
};
const $document = (question) => $json($analytic$report$estimate.document($estimate(question)));
