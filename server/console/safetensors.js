// What can be read of an adapter's files before they are sent. The server's check decides.

const MOST_HEADER_BYTES = 100e6;
const SIZES = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  F8_E4M3: 1,
  F8_E5M2: 1,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U8: 1,
  BOOL: 1,
};

/** The facts of `adapter_config.json`. Throws an `Error` in words. */
export async function readConfig(file) {
  let config;
  try {
    config = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} is not JSON`);
  }
  if (config === null || typeof config !== "object" || !config.peft_type)
    throw new Error(`${file.name} has no peft_type: it is no PEFT config`);
  return config;
}

/** The tensors that a safetensors file declares. Throws an `Error` in words. */
export async function readTensors(file) {
  if (file.size < 8) throw new Error(`${file.name} is too short for a safetensors file`);
  const start = new DataView(await file.slice(0, 8).arrayBuffer());
  const length = Number(start.getBigUint64(0, true));
  if (length > Math.min(MOST_HEADER_BYTES, file.size - 8))
    throw new Error(`${file.name} has no safetensors header`);
  let header;
  try {
    header = JSON.parse(await file.slice(8, 8 + length).text());
  } catch {
    throw new Error(`the header of ${file.name} is not JSON`);
  }
  const tensors = Object.entries(header)
    .filter(([name]) => name !== "__metadata__")
    .map(([name, one]) => ({ name, ...one }));
  const end = Math.max(0, ...tensors.map((one) => one.data_offsets[1]));
  if (8 + length + end !== file.size)
    throw new Error(
      `${file.name} should have ${8 + length + end} bytes and has ${file.size}: it is cut off, or holds more`,
    );
  for (const one of tensors) checkSize(one);
  return tensors;
}

function checkSize({ name, dtype, shape, data_offsets: [from, to] }) {
  const wanted = shape.reduce((product, size) => product * size, SIZES[dtype] ?? NaN);
  if (wanted !== to - from)
    throw new Error(`${name} is ${dtype} [${shape}], which does not take ${to - from} bytes`);
}

/** Of a config, what tells adapters apart. */
export function describeConfig(config) {
  const targets = Array.isArray(config.target_modules)
    ? config.target_modules.join(", ")
    : config.target_modules;
  return [
    config.peft_type,
    config.r !== undefined && `rank ${config.r}`,
    config.lora_alpha !== undefined && `alpha ${config.lora_alpha}`,
    config.use_dora && "DoRA",
    config.use_rslora && "rsLoRA",
    targets && `on ${targets}`,
  ]
    .filter(Boolean)
    .join(" · ");
}

/** Of tensors, how many there are of what, and pairs that lack a half. Throws an `Error`. */
export function describeTensors(tensors) {
  const names = new Set(tensors.map((one) => one.name));
  for (const name of names) {
    const other = name.includes("lora_A")
      ? name.replace("lora_A", "lora_B")
      : name.replace("lora_B", "lora_A");
    if (!names.has(other))
      throw new Error(`${name} has no ${other.includes("lora_A") ? "lora_A" : "lora_B"} beside it`);
  }
  const dtypes = [...new Set(tensors.map((one) => one.dtype))].join(", ");
  const ranks = [
    ...new Set(tensors.filter((one) => one.name.includes("lora_A")).map((one) => one.shape[0])),
  ].sort((a, b) => a - b);
  const rank = ranks.length
    ? ` · rank ${ranks.length > 1 ? `${ranks[0]} to ${ranks.at(-1)}` : ranks[0]}`
    : "";
  return `${tensors.length} tensors · ${dtypes}${rank}`;
}
