// A question as the page's controls hold it, and its answer.

const $request = ({ dtype = "auto", quantization = null, double_quant = false, attention = "sdpa", padded = false,
  cache_implementation = "dynamic", gpu_memory_utilization = null, batch_size, prompt_tokens, output_tokens }) =>
  $make($analytic$request.Request, {
    dtype, quantization, double_quant, attention, padded, cache_implementation, batch_size, prompt_tokens, output_tokens,
    gpu_memory_utilization: gpu_memory_utilization === null ? null : $F(gpu_memory_utilization),
  });

// The estimate of a model on GPUs, as `ullage estimate` makes it; throws $UllageError where that refuses.
const $estimate = ({ model, gpu = null, gpus = 1, ...asked }) => {
  const device = gpu === null ? null : $gpus.at(gpu);
  const calibration = gpu === null ? null : $calibrations.get(gpu);
  return $call($analytic$estimator.run, [$model(model), $request(asked)], { gpu: device, gpus, calibration });
};

const $json = (value) => {
  if (value instanceof $Dict) return Object.fromEntries(value.items().map(([key, held]) => [key, $json(held)]));
  if (Array.isArray(value)) return value.map($json);
  if (value instanceof $Float) return value.value;
  return typeof value === "bigint" ? Number(value) : value;
};
const $document = (question) => $json($analytic$report$estimate.document($estimate(question)));
