// What stands in for files and libraries: models, their weights in every format, and what formats are known by.

let $tables = { models: {}, presets: {}, methods: {}, itemsize: {} };
const $absent = () => $fail("this is no part of the page");
const $find_engine = (name) => ({ transformers: $analytic$engines$transformers$engine, vllm: $analytic$engines$vllm$engine })[name] ?? $absent();
const $known = (table, name) => $require($tables[table][name], `${name} among the ${table}`);
const $itemsize = (dtype) => $known("itemsize", dtype);
const $find_method = (name) => {
  const { capability, note } = $known("methods", name);
  return { capability, transformers: { note } };
};
const $find_preset = (name) => {
  const preset = $known("presets", name);
  return [preset, { transformers: { note: preset.note } }];
};
const $quantization_of = (config) => config.native_bits;
const $weight_bits = (native) => native;

const $revived = (value) => {
  if (Array.isArray(value)) return value.map($revived);
  if (value === null || typeof value !== "object") return value;
  const { "": name, ...held } = value;
  return $make($analytic$models$geometry[name], Object.fromEntries(Object.entries(held).map(([key, part]) => [key, $revived(part)])));
};
const $geometry = ({ kinds, order, ...held }) => {
  const made = kinds.map($revived);
  return $replace.with({ layers: order.map((kind) => made[kind]) }, $revived(held));
};
const $layers = (runs) => {
  if (runs === null) return null;
  const layers = [];
  for (let at = 0; at < runs.length; at += 2) for (let i = 0; i < runs[at + 1]; i++) layers.push(runs[at] + i);
  return layers;
};

class $Model {
  constructor(name, row) {
    Object.assign(this, row, { name, source: "catalog", revision: null, row });
    this.config = Object.assign(new $Dict($map((key) => [key, null], row.config)), { native_bits: row.native_bits });
    this.geometry = $geometry(row.geometry);
    this.places = new Map();
    this.groups = new Map();
  }
  group(at) {
    if (!this.groups.has(at)) {
      const [name, role, shape, layers, copies, module, persistent, place] = this.row.tensors[at];
      const named = { name, role, shape, copies, module, persistent, layers: $layers(layers) };
      const group = $make($analytic$models$inventory.TensorGroup, named);
      this.groups.set(at, group);
      this.places.set(group, place);
    }
    return this.groups.get(at);
  }
  is_decoder(group) { return $require(this.places.get(group), group.name) === "decoder"; }
  is_after_layers(group) { return $require(this.places.get(group), group.name) === "after"; }
}
const $model = $memo(16, (name) => new $Model(name, $known("models", name)));

const $weigh = $memo(256, (model, dtype, quantization) => {
  const choice = $require(model.row.choices[`${dtype} ${$str(quantization)}`], `${model.id} as ${quantization} in ${dtype}`);
  if (choice.refused) throw new $UllageError(...choice.refused);
  const served = choice.served.map((at, index) => {
    const [group, ...sizes] = model.row.sizes.map((column) => column[at]);
    return new $analytic$weights.ServedGroup(model.group(group), choice.formats[index], ...sizes);
  });
  const [by_format, by_role, unconverted] = [choice.by_format, choice.by_role, choice.unconverted].map((sums) => new $Dict(Object.entries(sums)));
  return { served, bytes: choice.bytes, by_format, by_role, unconverted };
});

const $has_experts = $memo(16, (model) => model.geometry.layers.map(({ feed_forward }) => feed_forward instanceof $analytic$models$geometry.MixtureOfExperts));
const $stage_bytes = (model, { widest, factors }, tensor, pipeline, stage) => {
  const { kinds, mixers, by_expert } = model.row.vllm;
  const span = $analytic$loaded$vllm_parallel.pipeline_spans(kinds.length, pipeline)[stage];
  if (tensor !== widest) $fail(`a pipeline of stages of ${tensor} GPUs`);
  if (by_expert && !$has_experts(model).slice(...span).includes(true)) throw new $UllageError("vLLM loads no stage without experts");
  return $sum($map($mul, factors, $analytic$webpage$ranks.stage_row(kinds, mixers, span)));
};
const $vllm_weights = (model, dtype, quantization, capability, tensor, pipeline, stage) => {
  const { choices, variants } = model.row.vllm, number = (capability ?? []).join(".");
  const choice = `${dtype} ${$str(quantization)}`, variant = variants[$require(choices[choice]?.[number], `${model.id} as ${choice} on ${number}`)];
  const alone = $require(variant.ranks[tensor - 1], `${tensor} GPUs that share every layer`);
  if (Array.isArray(alone)) throw new $UllageError(...alone);
  return [{ bytes: pipeline === 1 ? alone : $stage_bytes(model, variant, tensor, pipeline, stage) }];
};
