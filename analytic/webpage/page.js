// The page: controls to a question, its answer to words, tables and bars, and the question kept in the address.

const $on = (id) => document.getElementById(id);
const $h = (tag, attributes = {}, ...parts) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...parts);
  return element;
};
const $fill = (id, ...parts) => $on(id).replaceChildren(...parts);
const $say = $analytic$report$sentences;
const $whole = (count) => $format(count, ",");
const $words = (name) => name.replaceAll("_", " ");

// Every control: its name in the address, and what it stands for if it is left alone.
const $CONTROLS = {
  engine: "transformers", model: "llama-3.1-8b", gpu: "h100-80gb", gpus: "1", format: "", "prompt-tokens": "2048", "output-tokens": "256",
  "batch-size": "1", attention: "sdpa", "cache-implementation": "dynamic", padded: "", "max-num-seqs": "",
  "max-num-batched-tokens": "", "kv-cache-dtype": "auto", "enforce-eager": "", "gpu-memory-utilization": "",
};
const $OWN = {
  transformers: ["attention", "cache-implementation", "padded"],
  vllm: ["max-num-seqs", "max-num-batched-tokens", "kv-cache-dtype", "enforce-eager"],
};
const $RARE = [...Object.values($OWN).flat(), "gpu-memory-utilization"];
const $MOST_GPUS = 8;
const $FORMAT = ["dtype", "quantization", "double-quant"];
const $GPU_KINDS = { "data-centre": "Data centre", workstation: "Workstation", consumer: "Consumer", laptop: "Laptop", mig: "MIG slices" };

// ------------------------------------------------------------------ controls

const $DTYPES = ["bfloat16", "float16", "float32"];
const $CONVERTED = { transformers: ["bnb-nf4", "bnb-fp4", "bnb-int8"], vllm: $analytic$webpage$ranks.PACKED };
const $engine = () => $on("engine").value;
const $isOffered = (id) => $OWN[$engine()].includes(id) || !Object.values($OWN).flat().includes(id);
const $bits = (name) => `${name}, ${Number($tables.bits[name].toFixed(2))} bits`;
const $ofVllm = () => {
  const packed = (online) => $analytic$webpage$ranks.PACKED.filter((name) => $analytic$loaded$vllm.ONLINE.has(name) === online)
    .map((name) => [`quantization=${name}`, $bits(name)]);
  return {
    "As it is": [["", "as published"], ...$DTYPES.map((dtype) => [`dtype=${dtype}`, dtype])],
    "Quantised while loading": packed(true),
    "Quantised beforehand": packed(false),
  };
};
const $ofTransformers = () => {
  const packed = (early) => Object.values($tables.presets).filter(({ beforehand }) => beforehand === early)
    .map(({ name }) => [`quantization=${name}`, $bits(name)]);
  return {
    "As it is": [["", "as published"], ...$DTYPES.map((dtype) => [`dtype=${dtype}`, dtype]),
      ["quantization=none", "dequantised, if published packed"]],
    "Quantised while loading": [...$CONVERTED.transformers.map((name) => [`quantization=${name}`, $bits(name)]),
      ["quantization=bnb-nf4&double-quant=on", "bnb-nf4, double quantised"],
      ["quantization=bnb-fp4&double-quant=on", "bnb-fp4, double quantised"], ...packed(false)],
    "Quantised beforehand": packed(true),
  };
};
const $options = (choices) => choices.map(([value, label]) => $h("option", { value }, label));
const $grouped = (groups) => Object.entries(groups).map(([label, choices]) => $h("optgroup", { label }, ...$options(choices)));

const $furnish = () => {
  const byKind = Object.entries($GPU_KINDS).map(([kind, label]) => [label, $gpus.values().filter((gpu) => gpu.kind === kind)
    .map((gpu) => [gpu.name, `${gpu.name}, ${$say.gib(gpu.total_bytes)} GiB`])]);
  $fill("gpu", $h("option", { value: "" }, "any, without a limit"), ...$grouped(Object.fromEntries(byKind)));
  $fill("gpus", ...$options(Array.from({ length: $MOST_GPUS }, (_, at) => [String(at + 1), String(at + 1)])));
  $fill("kv-cache-dtype", ...$options($analytic$state$vllm_specs.CACHE_DTYPES.keys().map((name) => [name, name])));
  $fill("models", ...Object.entries($tables.models).map(([name, { id }]) => $h("option", { value: name }, id)));
};

// What hangs on the engine: formats, the rarer controls, and what is said at the end.
const $turnTo = (engine) => {
  const chosen = $on("format").value, found = $find_engine(engine);
  $fill("format", ...$grouped(engine === "vllm" ? $ofVllm() : $ofTransformers()));
  $on("format").value = chosen;
  if ($on("format").selectedIndex < 0) $on("format").value = $CONTROLS.format;
  for (const element of document.querySelectorAll("[data-engine]")) element.hidden = element.dataset.engine !== engine;
  $fill("terms-title", `In the terms of ${found.NAME}`);
  $fill("not-modeled", ...[...$analytic$estimator.NOT_MODELED, ...found.NOT_MODELED].map((line) => $h("li", {}, line)));
};

const $named = () => {
  const found = new Map();
  for (const [name, { id, aliases }] of Object.entries($tables.models)) {
    for (const other of [...aliases, name, id]) found.set(other.toLowerCase(), name);
  }
  return found;
};
let $names;

const $tokens = (id, what) => $analytic$quantity.parse_tokens($on(id).value.trim(), what);
const $share = (text) => {
  if (text.trim() === "") return null;
  return Number.isFinite(Number(text)) ? Number(text) : $refuse("gpu-memory-utilization", `${text} is not a number`, "write it like 0.9");
};
const $refuse = (field, message, hint) => { throw Object.assign(new $UsageError(message, hint), { field }); };

const $question = () => {
  if ($misread !== null) $refuse(...$misread, "choose what is meant");
  const name = $on("model").value.trim();
  const model = $names.get(name.toLowerCase()) ?? $refuse("model", `${name || "no model"} is not in the catalogue`, "choose one of the list, or ask the command: it reads any model of the Hub");
  const format = new URLSearchParams($on("format").value);
  const counted = (id) => {
    try { return $tokens(id, `--${id}`); } catch (error) { throw Object.assign(error, { field: id }); }
  };
  const count = (id) => $on(id).value.trim() === "" ? null : counted(id);
  const own = $engine() === "vllm" ? {
    max_num_seqs: count("max-num-seqs"), max_num_batched_tokens: count("max-num-batched-tokens"),
    enforce_eager: $on("enforce-eager").value === "on" || null, kv_cache_dtype: $on("kv-cache-dtype").value,
  } : {
    attention: $on("attention").value, cache_implementation: $on("cache-implementation").value, padded: $on("padded").value === "on",
  };
  return {
    engine: $engine(), ...own, model, gpu: $on("gpu").value || null, gpus: Number($on("gpus").value),
    dtype: format.get("dtype") ?? "auto", quantization: format.get("quantization"), double_quant: format.has("double-quant"),
    prompt_tokens: counted("prompt-tokens"), output_tokens: counted("output-tokens"), batch_size: counted("batch-size"),
    gpu_memory_utilization: $share($on("gpu-memory-utilization").value),
  };
};

// ------------------------------------------------------------------ the address

const $address = () => {
  const state = new URLSearchParams();
  for (const [id, usual] of Object.entries($CONTROLS)) {
    const value = $on(id).value.trim();
    if (!$isOffered(id)) continue;
    if (id === "format") for (const [key, part] of new URLSearchParams(value)) state.set(key, part);
    else if (value !== usual || id === "model" || id === "gpu") state.set(id, value);
  }
  return `#${state}`;
};
// A dtype with a format is no choice of the list, but an address may have it, as what would help does.
const $formatIn = (state) => {
  const format = new URLSearchParams($FORMAT.filter((key) => state.has(key)).map((key) => [key, state.get(key)]));
  const [dtype, name] = [format.get("dtype"), format.get("quantization")], value = String(format);
  const isListed = [...$on("format").options].some((option) => option.value === value);
  if (!isListed && $DTYPES.includes(dtype) && $CONVERTED[$engine()].includes(name)) {
    $on("format").append(...$options([[value, `${name}${format.has("double-quant") ? ", double quantised" : ""}, in ${dtype}`]]));
  }
  return value;
};
// What an address asks for and the page cannot: nothing is answered in its place until a control is changed.
let $misread = null;
const $putControl = (id, value) => {
  $on(id).value = value;
  if ($on(id).selectedIndex !== -1) return;
  $on(id).value = $CONTROLS[id];
  $misread ??= [id, `the address asks for ${id} '${value}', which is not known`];
};
const $restore = () => {
  const state = new URLSearchParams(location.hash.slice(1));
  $misread = null;
  for (const [id, usual] of Object.entries($CONTROLS)) if (id !== "format") $putControl(id, state.get(id) ?? usual);
  $turnTo($engine());
  $putControl("format", $formatIn(state));
  for (const key of state.keys()) {
    const isKnown = $FORMAT.includes(key) || (key !== "format" && Object.hasOwn($CONTROLS, key) && $isOffered(key));
    if (!isKnown) $misread ??= ["model", `the address asks for '${key}', which is not known to ${$engine()}`];
  }
  if ($RARE.some((id) => state.has(id) && $isOffered(id))) $on("more").open = true;
};
const $keep = () => {
  if ($address() !== location.hash) history.pushState(null, "", $address());
};

// ------------------------------------------------------------------ the answer

const $STATUS = { fits: "fits", tight: "within the bounds of error", no: "does not fit" };
const $MARKS = { fits: "●", tight: "◐", no: "×" };
const $mark = (status) => {
  $on("mark").className = status;
  $fill("mark", $MARKS[status] ?? "");
};
const $showVerdict = (answer) => {
  $mark(answer.gpu === null ? "" : $say.status_of(answer));
  $fill("sentence", $say.sentence($say.verdict(answer)));
  $fill("assumptions", `${$say.assumptions(answer)}.`);
  document.title = `${answer.model.name}${answer.gpu === null ? "" : ` on ${answer.gpus} × ${answer.gpu.name}`} · ullage`;
};

const $figure = (name, value, note = "") => $h("div", {}, $h("dt", {}, name), $h("dd", {}, value, ...(note ? [$h("small", {}, note)] : [])));
const $showFigures = (answer) => {
  const { device } = answer.fullest, rule = answer.rule_of_thumb, limited = answer.gpu !== null;
  const [middle, low, high] = $say.cells(device);
  $on("figures").classList.remove("stale");
  $fill("figures",
    $figure(answer.gpus > 1 ? "The fullest needs" : "It needs", `${middle} GiB`, low && `${low} to ${high}`),
    ...(limited ? [
      $figure("GPUs needed", answer.gpus_needed === null ? "none is enough" : $whole(answer.gpus_needed), `of ${answer.gpu.name}`),
      $figure("Most sequences", $whole(answer.max_sequences), "of these tokens"),
      $figure("Longest context", `${$whole(answer.max_tokens)}`, `tokens, ${$whole(answer.request.batch_size)} at once`),
    ] : []),
    $figure(answer.gpus > 1 ? "Rule of thumb, in all" : "Rule of thumb", `${$say.gib(rule.total_bytes)} GiB`, `${rule.bits} bits a weight, and 20 %`));
};

const $percent = (part, scale) => `${Math.max(0, Math.min(100, 100 * Number(part) / scale))}%`;
const $placed = (element, styles) => { Object.assign(element.style, styles); return element; };
const $parts = (row, scale, numbered) => $h("div", { class: "parts" }, ...$analytic$ledger.COMPONENTS.map((name, at) => {
  const wide = Number(row.components.at(name).bytes) / scale > 0.04;
  return $placed($h("div", { class: `part ${name}` }, numbered && wide ? String(at + 1) : ""), { width: $percent(row.components.at(name).bytes, scale) });
}));
const $showBar = (answer) => {
  const row = answer.fullest, capacity = answer.capacity_bytes, { device } = row;
  const beside = Number(row.uncounted.bytes) ? ", the context beside it" : "";
  const scale = Math.max(capacity ?? 0, Number(device.high_bytes)) * 1.001;
  const told = $analytic$ledger.COMPONENTS.map((name) => `${$words(name)} ${$say.gib(row.components.at(name).bytes)}`).join(", ");
  const stack = $h("div", { class: "stack", role: "img", "aria-label": `${told} GiB; the table below has them` }, $parts(row, scale, true),
    $placed($h("div", { class: "span" }), { left: $percent(device.low_bytes, scale), width: $percent($sub(device.high_bytes, device.low_bytes), scale) }));
  if (capacity !== null) stack.append($placed($h("div", { class: "limit" }), { left: $percent(capacity, scale) }));
  const [middle, low, high] = $say.cells(device);
  $fill("bar", stack, $h("div", { class: "scale" },
    $h("span", {}, low ? `${middle} GiB, between ${low} and ${high}` : `${middle} GiB`),
    $h("span", {}, capacity === null ? "" : `line: ${$say.gib(capacity)} GiB usable${beside}`)));
};

const $row = (kind, name, quantity, swatch = []) => {
  const [middle, low, high, basis] = $say.cells(quantity);
  return $h("tr", { class: kind }, $h("th", { scope: "row", "data-basis": basis }, ...swatch, name), ...[middle, low, high].map((text) => $h("td", {}, text)), $h("td", { class: "word" }, basis));
};
const $head = (...names) => $h("thead", {}, $h("tr", {}, ...names.map((name, at) => at === 0 || name === "" ? $h("td", {}, name) : $h("th", { scope: "col", class: name === "basis" ? "word" : "" }, name))));
const $showLedger = (answer) => {
  const row = answer.fullest, { peak } = row;
  $fill("peak", `${answer.gpus > 1 ? `The fullest of ${answer.gpus} GPUs; its` : "Its"} peak is in ${peak.name} (${peak.moment}).`);
  $showBar(answer);
  $fill("ledger", $head("", "GiB", "low", "high", "basis"), $h("tbody", {},
    ...$analytic$ledger.COMPONENTS.map((name, at) => $row("", $words(name), row.components.at(name), [$h("span", { class: `swatch ${name}`, "aria-hidden": "true" }, String(at + 1))])),
    $row("total", "allocated", row.allocated), $row("total", "reserved", row.reserved), $row("total", "device", row.device),
    $row("quiet", "while loading", row.load_peak)));
};

const $showSplit = (answer) => {
  $on("split-section").hidden = answer.gpus === 1;
  const scale = Math.max(answer.capacity_bytes ?? 0, Number(answer.fullest.device.bytes));
  $fill("split", $head("", "layers", "weights", "device GiB", ""), $h("tbody", {}, ...answer.ledgers.map((row, at) => $h("tr", {},
    $h("th", { scope: "row" }, `GPU ${at}`),
    $h("td", {}, row.layers === null ? "all" : `${row.layers[0]}–${row.layers[1] - 1}`),
    ...[row.components.at("weights"), row.device].map(({ bytes }) => $h("td", {}, $say.gib(bytes))),
    $h("td", { class: "small" }, $parts(row, scale, false))))));
};

// The address of the question with one change, as a lever words it: `--batch-size 4`, `--gpu NAME:3`, `--enforce-eager`.
const $changed = (change) => {
  const [, flag, value = "on"] = /^--(\S+)(?: (\S+))?$/.exec(change), state = new URLSearchParams($address().slice(1));
  if (flag === "quantization") state.delete("double-quant");
  const [name, count] = flag === "gpu" ? value.split(":") : [value, null];
  state.set(flag, name);
  if (count !== null) state.set("gpus", count);
  return Number(count) > $MOST_GPUS ? null : `#${state}`;
};
// Stages of vLLM's pipeline have flags of their own, which the page does not offer.
const $lever = (answer, lever) => {
  const words = $say.lever_words(lever);
  const address = /-parallel-size /.test(lever.change) ? null : $changed(lever.change);
  if (address === null) return [words];
  return [$h("a", { href: address }, lever.change), words.slice(lever.change.length)];
};
const $listed = (section, id, lines) => {
  $on(section).hidden = lines.length === 0;
  $fill(id, ...lines.map((line) => $h("li", {}, ...[line].flat())));
};

const $showTerms = (answer) => {
  const { flags } = answer.asked;
  $listed("terms-section", "terms", $list(answer.engine.lines(answer.asked, answer.ledgers)));
  $on("gpu-memory-utilization").placeholder = $str(answer.request.gpu_memory_utilization ?? $F(1));
  $on("max-num-seqs").placeholder = flags.max_num_seqs ?? "";
  $on("max-num-batched-tokens").placeholder = flags.max_num_batched_tokens ?? "";
};

const $showMap = (answer) => {
  const map = $analytic$plans$budget.budget_map(answer);
  const [context, concurrency] = map.asked;
  $on("map").classList.remove("stale");
  $fill("map", $head("tokens", ...map.concurrencies.map($whole)), $h("tbody", {}, ...map.contexts.map((tokens, down) => $h("tr", {},
    $h("th", { scope: "row" }, $whole(tokens)),
    ...map.concurrencies.map((sequences, across) => {
      const cell = map.cells[down][across], asked = tokens === context && sequences === concurrency;
      return $h("td", { class: `${cell}${asked ? " asked" : ""}` }, $h("span", { "aria-hidden": "true" }, $MARKS[cell]), $h("span", { class: "away" }, $STATUS[cell]));
    })))));
};
// The command takes the same calibration by itself.
const $command = (answer) =>
  $analytic$report$command.command_of($replace.with({ asked: $replace.with({ calibration: null }, answer.asked) }, answer));

// First what was asked; then, once that is on the screen, what takes many estimates: limits, levers, the map.
let $pending;
const $show = (answer) => {
  $showVerdict(answer);
  $showLedger(answer);
  $showSplit(answer);
  $showTerms(answer);
  for (const id of ["figures", "map"]) $on(id).classList.toggle("stale", id === "figures" || answer.gpu !== null);
  $on("map-section").hidden = answer.gpu === null;
  $pending = setTimeout(() => {
    $showRest(answer);
    if (answer.gpu !== null) $pending = setTimeout(() => $showMap(answer), 100);
  });
};
const $showRest = (answer) => {
  $showFigures(answer);
  $listed("help-section", "help", answer.fits === false ? answer.levers.map((lever) => $lever(answer, lever)) : []);
  $listed("notes-section", "notes", $list(answer.warnings));
  $fill("command", $command(answer));
};
const $showRefusal = ({ message, hint }) => {
  $mark("no");
  $fill("sentence", $say.sentence(message));
  $fill("assumptions", hint ? `${$say.sentence(hint)}.` : "");
  $fill("figures");
  for (const id of ["figures", "map"]) $on(id).classList.remove("stale");
};

const $ask = () => {
  const results = document.querySelectorAll(".result");
  clearTimeout($pending);
  for (const id of Object.keys($CONTROLS)) $on(id).removeAttribute("aria-invalid");
  try {
    $show($estimate($question()));
    $on("model-note").textContent = $model($names.get($on("model").value.trim().toLowerCase())).id;
  } catch (error) {
    if (!(error instanceof $UllageError)) throw error;
    if (error.field) $on(error.field).setAttribute("aria-invalid", "true");
    for (const section of results) section.hidden = true;
    $showRefusal(error);
    return;
  }
  for (const section of results) if (!section.id) section.hidden = false;
};

// ------------------------------------------------------------------ start

const $unpacked = async () => {
  const bytes = Uint8Array.from(atob($on("tables").textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
};
const $copy = async (text, what) => {
  await navigator.clipboard.writeText(text);
  $fill("copied", `${what} copied.`);
};
const $start = async () => {
  $tables = await $unpacked();
  $names = $named();
  $furnish();
  $restore();
  $on("engine").addEventListener("input", () => $turnTo($engine()));
  $on("asked").addEventListener("input", () => { $misread = null; $ask(); });
  $on("asked").addEventListener("change", $keep);
  $on("model").addEventListener("focus", () => $on("model").select());
  $on("asked").addEventListener("submit", (event) => event.preventDefault());
  addEventListener("popstate", () => { $restore(); $ask(); });
  $on("copy-command").addEventListener("click", () => $copy($on("command").textContent, "The command is"));
  $on("copy-link").addEventListener("click", () => { $keep(); $copy(location.href, "The link is"); });
  $ask();
  for (const id of ["asked", "answer"]) $on(id).hidden = false;
  $on("notice").remove();
};
if (typeof document !== "undefined") $start();
