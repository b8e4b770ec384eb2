// What translated Python stands on: its numbers, its equality, its collections. Names begin with $, as no Python name does.
// An int is a number while it is safe (up to 2^53) and a BigInt beyond; a float is boxed, so that 2.0 is not 2.

class $Error extends Error {}
class $KeyError extends $Error {}
class $ValueError extends $Error {}
class $ZeroDivisionError extends $Error {}
class $UllageError extends $Error {
  constructor(message, hint = "") { super(message); this.hint = hint; }
}
$UllageError.params = ["message", "hint"];
class $UsageError extends $UllageError {}
$UsageError.params = $UllageError.params;
const $fail = (message) => { throw new $Error(message); };
const $require = (value, what) => value === undefined ? $fail(`${what} is not there`) : value;

// ------------------------------------------------------------------ numbers

class $Float {
  constructor(value) { this.value = value; }
  valueOf() { return this.value; }
}
const $F = (value) => new $Float(value);
const $isNumber = (x) => typeof x === "number" || typeof x === "bigint" || typeof x === "boolean" || x instanceof $Float;
const $int = (x) => $safe(x) ? Number(x) : x;
const $safe = (x) => x <= Number.MAX_SAFE_INTEGER && x >= Number.MIN_SAFE_INTEGER;
const $big = (x) => typeof x === "bigint" ? x : BigInt(x);

// What numbers alone cannot decide: a BigInt, a float, or an operator that a class has. Each operator tries numbers first.
const $beyond = (name, exact, inexact, other = () => undefined) => (a, b) => {
  if (!$isNumber(a) || !$isNumber(b)) return other(a, b) ?? $fail(`${name} of ${typeof a} and ${typeof b}`);
  if (a instanceof $Float || b instanceof $Float) return $F(inexact(Number(a), Number(b)));
  return $int(exact($big(a), $big(b)));
};
const $addBeyond = $beyond("+", (a, b) => a + b, (a, b) => a + b, (a, b) =>
  typeof a === "string" && typeof b === "string" ? a + b
    : Array.isArray(a) && Array.isArray(b) ? [...a, ...b]
      : a?.__add__?.(b) ?? b?.__radd__?.(a));
const $subBeyond = $beyond("-", (a, b) => a - b, (a, b) => a - b);
const $mulBeyond = $beyond("*", (a, b) => a * b, (a, b) => a * b, (a, b) =>
  typeof a === "string" ? a.repeat(Math.max(0, Number(b)))
    : Array.isArray(a) ? Array.from({ length: Math.max(0, Number(b)) }, () => a).flat()
      : a?.__mul__?.(b));
// Of floats as CPython does (Objects/floatobject.c, _float_div_mod), by the exact remainder.
const $floatMod = (a, b) => {
  const rest = a % b;
  if (rest === 0) return b < 0 ? -0 : 0;
  return (rest < 0) !== (b < 0) ? rest + b : rest;
};
const $floatFloor = (a, b) => {
  const rest = a % b, whole = (a - rest) / b - (rest !== 0 && (rest < 0) !== (b < 0) ? 1 : 0);
  return Math.floor(whole) + (whole - Math.floor(whole) > 0.5 ? 1 : 0);
};
const $floordivBeyond = $beyond("//", (a, b) => a / b - (a % b !== 0n && (a < 0n) !== (b < 0n) ? 1n : 0n), $floatFloor);
const $modBeyond = $beyond("%", (a, b) => a % b + (a % b !== 0n && (a < 0n) !== (b < 0n) ? b : 0n), $floatMod);
const $both = (a, b) => typeof a === "number" && typeof b === "number";
const $isInt = Number.isSafeInteger;
const $add = (a, b) => $both(a, b) && $isInt(a + b) ? a + b : $addBeyond(a, b);
const $sub = (a, b) => $both(a, b) && $isInt(a - b) ? a - b : $subBeyond(a, b);
const $mul = (a, b) => $both(a, b) && $isInt(a * b) ? a * b + 0 : $mulBeyond(a, b); // + 0: an int has no negative zero
const $nonzero = (b) => { if (Number(b) === 0) throw new $ZeroDivisionError("division by zero"); };
const $floordiv = (a, b) => {
  $nonzero(b);
  if (!$both(a, b)) return $floordivBeyond(a, b);
  const rest = a % b;
  return (a - rest) / b - (rest !== 0 && (rest < 0) !== (b < 0) ? 1 : 0) + 0;
};
const $mod = (a, b) => {
  $nonzero(b);
  return $both(a, b) ? $floatMod(a, b) + 0 : $modBeyond(a, b);
};
const $pow = (a, b) => {
  if (a instanceof $Float || b instanceof $Float) return $F(Number(a) ** Number(b));
  return b < 0 ? $F(Number(a) ** Number(b)) : $int($big(a) ** $big(b));
};
const $neg = (x) => x instanceof $Float ? $F(-x.value) : $isNumber(x) ? $sub(0, x) : x.__neg__();

// a / b of integers, rounded once: both are exact while safe, else 66 bits of the quotient decide.
const $div = (a, b) => {
  $nonzero(b);
  if (a instanceof $Float || b instanceof $Float || ($safe(a) && $safe(b))) return $F(Number(a) / Number(b));
  const negative = (a < 0) !== (b < 0);
  const [over, under] = [$magnitude($big(a)), $magnitude($big(b))];
  const shift = BigInt(Math.max(0, 66 + under.toString(2).length - over.toString(2).length));
  const quotient = (over << shift) / under;
  const sticky = (over << shift) % under ? 1n : 0n;
  const value = Number(quotient | sticky) / 2 ** Number(shift);
  return $F(negative ? -value : value);
};
const $magnitude = (x) => x < 0n ? -x : x;

const $truncated = (x) => Number.isFinite(x) ? $int(BigInt(Math.trunc(x))) : $fail(`int of ${x}`);
const $halfEven = (x) => {
  const below = Math.floor(x), rest = x - below;
  return rest === 0.5 ? (below % 2 === 0 ? below : below + 1) : Math.round(x);
};
const $parsed = (text) => {
  if (!/^\s*[+-]?\d+\s*$/.test(text)) throw new $ValueError(`no integer: ${text}`);
  return $int(BigInt(text));
};
const $toInt = (x) => x instanceof $Float ? $truncated(x.value) : typeof x === "string" ? $parsed(x) : $int($big(x));
const $toFloat = (x) => x instanceof $Fraction ? $div(x.over, x.under) : $F(Number(x));
const $round = (x, digits) => {
  if (digits !== undefined) return x instanceof $Float ? $F(Number($fixed(x.value, digits))) : $fail("round of an int to digits");
  return x instanceof $Float ? $truncated($halfEven(x.value)) : $toInt(x);
};
const $abs = (x) => x instanceof $Float ? $F(Math.abs(x.value)) : x < 0 ? $neg(x) : x;
const $ceil = (x) => x instanceof $Float ? $truncated(Math.ceil(x.value)) : x instanceof $Fraction ? x.ceil() : $toInt(x);
class $Fraction {
  static isClass = true;
  constructor(over, under = 1) { Object.assign(this, { over, under }); }
  static of(x) { return x instanceof $Fraction ? x : new $Fraction(x); }
  __add__(x) {
    const { over, under } = $Fraction.of(x);
    return new $Fraction($add($mul(this.over, under), $mul(over, this.under)), $mul(this.under, under));
  }
  __radd__(x) { return this.__add__(x); }
  __mul__(x) { const { over, under } = $Fraction.of(x); return new $Fraction($mul(this.over, over), $mul(this.under, under)); }
  valueOf() { return $toFloat(this).value; }
  ceil() { return $neg($floordiv($neg(this.over), this.under)); }
}
const $gcd = (a, b) => Number(b) === 0 ? $abs(a) : $gcd(b, $mod(a, b));
const $lcm = (...xs) => xs.reduce((a, b) => a && b ? $abs($floordiv($mul(a, b), $gcd(a, b))) : 0, 1);
const $divmod = (a, b) => [$floordiv(a, b), $mod(a, b)];

// ------------------------------------------------------------------ equality, order and keys

const $ids = new WeakMap(), $interned = new Map();
let $lastId = 0;
const $id = (x) => {
  if (!$ids.has(x)) $ids.set(x, ++$lastId);
  return $ids.get(x);
};
const $part = (x) => typeof x === "string" && x[0] !== "\0" ? JSON.stringify(x) : String($key(x));
// Equal values have equal keys: a primitive is its own, a value class interns what its fields hold.
const $key = (x) => {
  if (typeof x === "boolean") return Number(x);
  if (typeof x === "bigint") return `\0${x}`;
  if (typeof x !== "object" || x === null) return x;
  if (x instanceof $Float) return Number.isInteger(x.value) ? $key($truncated(x.value)) : `\0f${x.value}`;
  if (Array.isArray(x)) return `\0(${x.map($part).join()})`;
  if (x instanceof $Set) return `\0{${[...x].map($part).sort().join()}}`;
  if (x instanceof $Dict) return $fail("a dict is no key");
  if (!x.constructor.compares) return `\0#${$id(x)}`;
  if (!$ids.has(x)) {
    const held = `${x.constructor.name}(${x.constructor.params.map((name) => $part(x[name])).join()})`;
    if (!$interned.has(held)) $interned.set(held, ++$lastId);
    $ids.set(x, $interned.get(held));
  }
  return `\0#${$ids.get(x)}`;
};
const $eq = (a, b) => a === b || ((typeof a === "object" || typeof b === "object") && $key(a) === $key(b))
  || (typeof a === "boolean" && typeof b === "number" && Number(a) === b)
  || (typeof b === "boolean" && typeof a === "number" && Number(b) === a);
const $ordered = (a, b) => {
  if (!Array.isArray(a)) return a < b ? -1 : a > b ? 1 : 0;
  for (let at = 0; at < Math.min(a.length, b.length); at++) {
    const order = $ordered(a[at], b[at]);
    if (order) return order;
  }
  return a.length - b.length;
};
const $lt = (a, b) => typeof a === "object" ? $ordered(a, b) < 0 : a < b;
const $gt = (a, b) => typeof a === "object" ? $ordered(a, b) > 0 : a > b;
const $le = (a, b) => typeof a === "object" ? $ordered(a, b) <= 0 : a <= b;
const $ge = (a, b) => typeof a === "object" ? $ordered(a, b) >= 0 : a >= b;
const $t = (x) => {
  if (typeof x !== "object") return Boolean(x);
  if (x === null) return false;
  if (x instanceof $Float) return x.value !== 0;
  if (x instanceof $Fraction) return Number(x.over) !== 0;
  if (Array.isArray(x)) return x.length > 0;
  if (x instanceof $Dict || x instanceof $Set) return x.size > 0;
  return true;
};
const $or = (value, other) => $t(value) ? value : other();
const $and = (value, other) => $t(value) ? other() : value;

// ------------------------------------------------------------------ collections

class $Dict {
  constructor(pairs = []) {
    this.map = new Map();
    for (const [key, value] of pairs) this.set(key, value);
  }
  static fromkeys(keys, value = null) { return new $Dict($map((key) => [key, value], keys)); }
  set(key, value) { const at = $key(key); this.map.set(at, [this.map.get(at)?.[0] ?? key, value]); }
  has(key) { return this.map.has($key(key)); }
  get(key, otherwise = null) { return this.has(key) ? this.at(key) : otherwise; }
  at(key) {
    const found = this.map.get($key(key));
    if (found === undefined) throw new $KeyError(String(key));
    return found[1];
  }
  setdefault(key, value) {
    if (!this.has(key)) this.set(key, value);
    return this.at(key);
  }
  clear() { this.map.clear(); }
  items() { return [...this.map.values()]; }
  keys() { return Array.from(this.map.values(), ([key]) => key); }
  values() { return Array.from(this.map.values(), ([, value]) => value); }
  get size() { return this.map.size; }
  [Symbol.iterator]() { return this.keys()[Symbol.iterator](); }
}
class $Set {
  constructor(items = []) {
    this.map = new Map();
    for (const item of items) this.add(item);
  }
  add(item) { const at = $key(item); if (!this.map.has(at)) this.map.set(at, item); }
  has(item) { return this.map.has($key(item)); }
  get size() { return this.map.size; }
  [Symbol.iterator]() { return this.map.values(); }
}
const $dict = (x = []) => x instanceof $Dict ? new $Dict(x.items()) : new $Dict(x);
$dict.fromkeys = $Dict.fromkeys;
const $set = (x = []) => new $Set(x);
const $list = (x = []) => Array.isArray(x) ? x.slice() : Array.from(x);
const $splat = (x) => Object.fromEntries(x.items());
const $bitor = (a, b) => a instanceof $Dict ? new $Dict([...a.items(), ...b.items()])
  : a instanceof $Set ? new $Set([...a, ...b]) : $fail("| of these");
const $slice = (first, last, step = null) => ({ first, last, step });
const $sliced = (x, { first, last, step }) =>
  step === null || step === 1 ? x.slice(first ?? 0, last ?? undefined)
    : step === -1 && first === null && last === null ? [...x].reverse() : $fail(`a slice in steps of ${step}`);
const $at = (x, key) => {
  if (typeof key === "number" && key >= 0 && Array.isArray(x) && key < x.length) return x[key];
  if (x instanceof $Dict) return x.at(key);
  if (typeof key === "object") return $sliced(x, key);
  const place = typeof key === "number" ? key : Number(key);
  const list = Array.isArray(x) || typeof x === "string" ? x : [...x];
  return $require(list[place < 0 ? list.length + place : place], `item ${place}`);
};
const $put = (x, key, value) => x instanceof $Dict ? x.set(key, value) : void (x[key < 0 ? x.length + key : key] = value);
const $change = (x, key, change) => $put(x, key, change($at(x, key)));
const $in = (item, x) => typeof x === "string" ? x.includes(item) : x.has ? x.has(item) : [...x].some((y) => $eq(item, y));
const $len = (x) => x.size ?? x.length ?? [...x].length;

const $methods = (prototype, methods) => {
  for (const [name, value] of Object.entries(methods)) Object.defineProperty(prototype, name, { value });
};
$methods(Array.prototype, {
  append(item) { this.push(item); },
  index(item) { const at = this.findIndex((x) => $eq(x, item)); return at < 0 ? $fail("not in the list") : at; },
});
$methods(String.prototype, {
  startswith(start) { return [start].flat().some((x) => this.startsWith(x)); },
  endswith(end) { return [end].flat().some((x) => this.endsWith(x)); },
  removesuffix(end) { return end && this.endsWith(end) ? this.slice(0, -end.length) : String(this); },
  removeprefix(start) { return this.startsWith(start) ? this.slice(start.length) : String(this); },
  lower() { return this.toLowerCase(); },
  upper() { return this.toUpperCase(); },
  partition(at) {
    const [head, ...rest] = this.split(at);
    return rest.length ? [head, at, rest.join(at)] : [String(this), "", ""];
  },
  join(parts) { return Array.from(parts).join(this); },
});

// ------------------------------------------------------------------ iteration

const $map = (f, ...xs) => Array.from($zip(...xs), (items) => f(...items));
const $gather = (xs, made, takes) => {
  const gathered = [];
  for (const x of xs) if (takes === undefined || takes(x)) gathered.push(made(x));
  return gathered;
};
const $gatherAll = (xs, made, takes) => $gather(xs, made, takes).flat();
const $filter = (f, xs) => Array.from(xs).filter(f ?? $t);
const $zip = (...xs) => $zip.with({}, ...xs);
$zip.with = ({ strict = false }, ...xs) => {
  const lists = xs.map($list), lengths = lists.map((list) => list.length), count = Math.min(...lengths);
  if (strict && count !== Math.max(...lengths)) $fail("zip of unequal lengths");
  return Array.from({ length: count }, (_, at) => lists.map((list) => list[at]));
};
const $enumerate = (xs) => Array.from(xs, (x, at) => [at, x]);
const $reversed = (xs) => Array.from(xs).reverse();
const $range = (first, last, step = 1) => {
  const [from, to] = last === undefined ? [0, first] : [first, last];
  $nonzero(step);
  return Array.from({ length: Math.max(0, Math.ceil((to - from) / step)) }, (_, at) => from + at * step);
};
const $any = (xs) => { for (const x of xs) if ($t(x)) return true; return false; };
const $all = (xs) => { for (const x of xs) if (!$t(x)) return false; return true; };
const $sum = (xs) => { let sum = 0; for (const x of xs) sum = $add(sum, x); return sum; };
const $prod = (xs) => { let product = 1; for (const x of xs) product = $mul(product, x); return product; };
const $next = (xs, otherwise) => {
  const { value, done } = xs[Symbol.iterator]().next();
  return done ? $require(otherwise, "a next item") : value;
};
const $best = (better) => ({ key = (x) => x, default: otherwise }, ...xs) => {
  let best, most;
  for (const x of xs.length === 1 ? xs[0] : xs) {
    const value = key(x);
    if (most === undefined || better(value, most)) [best, most] = [x, value];
  }
  return most === undefined ? $require(otherwise, "an item to choose from") : best;
};
const $max = (...xs) => $max.with({}, ...xs);
$max.with = $best($gt);
const $min = (...xs) => $min.with({}, ...xs);
$min.with = $best($lt);
const $sorted = (xs) => $sorted.with({}, xs);
$sorted.with = ({ key = (x) => x }, xs) => Array.from(xs, (x) => [key(x), x]).sort(([a], [b]) => $ordered(a, b)).map(([, x]) => x);
const $accumulate = (xs) => $accumulate.with({}, xs);
$accumulate.with = ({ initial }, xs) => {
  const sums = initial === undefined ? [] : [initial];
  for (const x of xs) sums.push(sums.length ? $add(sums.at(-1), x) : x);
  return sums;
};
const $Counter = (xs) => {
  const counts = new $Dict();
  for (const x of xs) counts.set(x, counts.get(x, 0) + 1);
  return counts;
};
const $bisect_left = (xs, x) => $bisect_left.with({}, xs, x);
$bisect_left.with = ({ key = (y) => y }, xs, x) => {
  let low = 0, high = $len(xs);
  while (low < high) {
    const middle = (low + high) >> 1;
    if ($lt(key($at(xs, middle)), x)) low = middle + 1; else high = middle;
  }
  return low;
};

// ------------------------------------------------------------------ functions and classes

const $signed = (f, params, rest = false) => Object.assign(f, { params, rest });
const $call = (f, given, named, self) => {
  const values = [...given], names = f.params ?? $fail("keywords for a function whose names are not known");
  const rest = [];
  for (const [name, value] of Object.entries(named)) {
    const at = names.indexOf(name);
    if (at >= 0) values[at] = value; else if (f.rest) rest.push([name, value]); else $fail(`${name} is no parameter`);
  }
  if (f.rest) values[names.length] = new $Dict(rest);
  return f.isClass ? new f(...values) : f.apply(self, values);
};
const $memo = (size, f) => {
  const known = new Map();
  const remembered = (...given) => {
    const at = given.length === 1 ? $key(given[0]) : $key(given);
    if (known.has(at)) return known.get(at);
    if (known.size >= size) known.clear();
    const value = f.isClass ? new f(...given) : f(...given);
    known.set(at, value);
    return value;
  };
  return $signed(remembered, f.params, f.rest);
};
const $cached = (self, name, make) => {
  const value = make.call(self);
  Object.defineProperty(self, name, { value });
  return value;
};
const $replace = {};
$replace.with = (changes, x) => {
  const { params } = x.constructor, values = [];
  let left = Object.keys(changes).length;
  for (const name of params) {
    if (name in changes) left -= 1;
    values.push(name in changes ? changes[name] : x[name]);
  }
  return left ? $fail(`a change of no field of ${x.constructor.name}`) : new x.constructor(...values);
};
const $make = (type, named) => $call(type, [], named);
const $iter = (xs) => xs[Symbol.iterator]();
const $typeOf = (x) => x.constructor;
const $fields = (x) => {
  const { params, later = [] } = x.isClass ? x : x.constructor;
  return [...params.map((name) => ({ name, init: true })), ...later.map((name) => ({ name, init: false }))];
};
const $asdict = (x) => new $Dict($fields(x).map(({ name }) => [name, $plain(x[name])]));
const $plain = (x) => Array.isArray(x) ? x.map($plain)
  : x instanceof $Dict ? new $Dict(x.items().map(([key, value]) => [key, $plain(value)]))
    : x?.constructor?.compares ? $asdict(x) : x;
// What is not called where it stands: a method keeps the object that it is of.
const $member = (x, name) => {
  const member = x[name];
  return typeof member === "function" ? member.bind(x) : member;
};
const $getattr = (x, name, otherwise) => $require(x[name] === undefined ? otherwise : x[name], `attribute ${name}`);
const $singledispatch = (base) => {
  const of = new Map();
  const dispatch = (x, ...rest) => {
    for (let type = x.constructor; type; type = Object.getPrototypeOf(type)) if (of.has(type)) return of.get(type)(x, ...rest);
    return base(x, ...rest);
  };
  return Object.assign(dispatch, { params: base.params, register: (type, f) => of.set(type, f) });
};
const $types = {
  int: (x) => typeof x === "number" || typeof x === "bigint" || typeof x === "boolean",
  bool: (x) => typeof x === "boolean",
  str: (x) => typeof x === "string",
  float: (x) => x instanceof $Float,
  tuple: (x) => Array.isArray(x),
};
const $isinstance = (x, ...types) => types.some((type) => type.isClass || type.prototype instanceof $Error ? x instanceof type : type(x));

// ------------------------------------------------------------------ text

const $str = (x) => {
  if (typeof x === "string") return x;
  if (x === null) return "None";
  if (typeof x === "boolean") return x ? "True" : "False";
  if (x instanceof $Float) return Number.isInteger(x.value) ? x.value.toFixed(1) : String(x.value);
  if (Array.isArray(x)) return x.length === 1 ? `(${$repr(x[0])},)` : `(${x.map($repr).join(", ")})`;
  return x.__str__ ? x.__str__() : String(x);
};
const $repr = (x) => typeof x === "string" ? (x.includes("'") && !x.includes('"') ? `"${x}"` : `'${x.replaceAll("'", "\\'")}'`) : $str(x);
// toFixed rounds a tie up, Python to the even digit: x is a tie if 2^(digits + 1) x is odd.
const $fixed = (x, digits) => {
  const size = Math.abs(x), scaled = size * 2 ** (digits + 1);
  let text = size < 1e21 ? size.toFixed(digits) : `${BigInt(size)}${digits ? `.${"0".repeat(digits)}` : ""}`;
  if (Number.isInteger(scaled) && scaled % 2 === 1 && Number(text.at(-1)) % 2 === 1) {
    text = `${text.slice(0, -1)}${Number(text.at(-1)) - 1}`;
  }
  return x < 0 || Object.is(x, -0) ? `-${text}` : text;
};
const $thousands = (text) => text.replace(/\B(?<!\.\d*)(?=(\d{3})+(?!\d))/g, ",");
const $format = (x, spec) => {
  const [, comma, digits, kind] = /^(,?)(?:\.(\d+)([f%]))?$/.exec(spec) ?? $fail(`format ${spec}`);
  if (kind === undefined) return comma ? $thousands($str(x)) : $str(x);
  const text = $fixed(Number(x) * (kind === "%" ? 100 : 1), Number(digits)) + (kind === "%" ? "%" : "");
  return comma ? $thousands(text) : text;
};
const $frozen = (make) => {
  let value;
  return () => value ??= make();
};
const $repeat = (value, count) => Array.from({ length: count }, () => value);
// As shlex quotes: what holds anything but these characters stands between single quotes.
const $shellJoin = (words) => words.map((word) => /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`).join(" ");
// Patterns as both languages read them; a match holds its groups by number.
class $Pattern {
  constructor(pattern) { this.whole = new RegExp(`^(?:${pattern})$`, "u"); }
  fullmatch(text) { return this.whole.exec(text)?.map((group) => group ?? null) ?? null; }
}
const $reSub = (pattern, by, text) => text.replace(new RegExp(pattern, "gu"), by);
