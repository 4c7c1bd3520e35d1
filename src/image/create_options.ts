/**
 * The options of new images, by qemu-img's names: `-o cluster_size=4k,lazy_refcounts=on`. What they are, read from
 * text, printed.
 *
 * @module
 */

import { parseOptionText } from "./block_options.ts";
import { CreateOptionsError, type Preallocation, type Qcow2CreateOptions } from "./qcow2/create_options.ts";
import { parseSize } from "./size.ts";

export { CreateOptionsError } from "./qcow2/create_options.ts";

/** Formats that images are made in. */
export type CreateFormat = "raw" | "qcow2";

/** Options by name: a size or number, a switch, or a text. */
export type CreateValues = Map<string, string | number | boolean>;

/** One option. */
interface Row {
  readonly name: string;
  readonly kind: "text" | "size" | "number" | "switch";
  readonly help: string;
  /** Printed where nothing is said. */
  readonly normally?: string | number | boolean;
  /** Belongs to the file, not to the format. */
  readonly file?: true;
}

const SIZE: Row = { name: "size", kind: "size", help: "Virtual disk size" };
const NO_COW: Row = {
  name: "nocow",
  kind: "switch",
  help: "Turn off copy-on-write (valid only on btrfs)",
  file: true,
};
const EXTENT_SIZE: Row = {
  name: "extent_size_hint",
  kind: "size",
  help: "Extent size hint for the image file, 0 to disable",
  file: true,
};

/** In the order in which QEMU prints them. */
const ROWS: Readonly<Record<CreateFormat, readonly Row[]>> = {
  raw: [
    SIZE,
    NO_COW,
    {
      name: "preallocation",
      kind: "text",
      help: "Preallocation mode (allowed values: off, falloc, full)",
      file: true,
    },
    EXTENT_SIZE,
  ],
  qcow2: [
    {
      name: "encryption",
      kind: "switch",
      help: "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
    },
    { name: "encrypt.format", kind: "text", help: "Encrypt the image, format choices: 'aes', 'luks'" },
    { name: "encrypt.key-secret", kind: "text", help: "ID of secret providing qcow AES key or LUKS passphrase" },
    { name: "encrypt.cipher-alg", kind: "text", help: "Name of encryption cipher algorithm" },
    { name: "encrypt.cipher-mode", kind: "text", help: "Name of encryption cipher mode" },
    { name: "encrypt.ivgen-alg", kind: "text", help: "Name of IV generator algorithm" },
    { name: "encrypt.ivgen-hash-alg", kind: "text", help: "Name of IV generator hash algorithm" },
    { name: "encrypt.hash-alg", kind: "text", help: "Name of encryption hash algorithm" },
    { name: "encrypt.iter-time", kind: "number", help: "Time to spend in PBKDF in milliseconds" },
    { name: "cluster_size", kind: "size", help: "qcow2 cluster size", normally: 65536 },
    { name: "extended_l2", kind: "switch", help: "Extended L2 tables", normally: false },
    {
      name: "preallocation",
      kind: "text",
      help: "Preallocation mode (allowed values: off, metadata, falloc, full)",
    },
    {
      name: "compression_type",
      kind: "text",
      help: "Compression method used for image cluster compression",
      normally: "zlib",
    },
    SIZE,
    { name: "compat", kind: "text", help: "Compatibility level (v2 [0.10] or v3 [1.1])" },
    { name: "backing_file", kind: "text", help: "File name of a base image" },
    { name: "backing_fmt", kind: "text", help: "Image format of the base image" },
    { name: "data_file", kind: "text", help: "File name of an external data file" },
    { name: "data_file_raw", kind: "switch", help: "The external data file must stay valid as a raw image" },
    { name: "lazy_refcounts", kind: "switch", help: "Postpone refcount updates", normally: false },
    { name: "refcount_bits", kind: "number", help: "Width of a reference count entry in bits", normally: 16 },
    NO_COW,
    EXTENT_SIZE,
  ],
};

/** Name, type and help of an option of the format's own; `null` when it has none of that name. */
export function createOptionRow(format: CreateFormat, name: string): readonly [string, string, string] | null {
  const row = ROWS[format].find((row) => row.name === name && !row.file);
  return row === undefined ? null : [name, TYPE_NAMES[row.kind], row.help];
}

/** Whether a text of options asks for the list of them. */
export function asksForHelp(text: string): boolean {
  return text.split(/(?<!,)(?:,,)*,(?!,)/).some((word) => word === "help" || word === "?");
}

/** The list of a format's options: lines. */
export function createOptionsHelp(format: CreateFormat, withFile: boolean): string[] {
  const rows = ROWS[format].filter(({ file }) => withFile || !file).toSorted((a, b) => a.name < b.name ? -1 : 1);
  return [
    withFile ? "Supported options:" : `Supported ${format} options:`,
    ...rows.map(({ name, kind, help }) => `  ${`${name}=<${TYPE_NAMES[kind]}>`.padEnd(22)} - ${help}`),
    ...withFile ? [] : [
      "",
      "The protocol level may support further options.",
      "Specify the target filename to include those options.",
    ],
  ];
}

const TYPE_NAMES: Readonly<Record<Row["kind"], string>> = {
  text: "str",
  size: "size",
  number: "num",
  switch: "bool (on/off)",
};

/**
 * Reads `name=value,...`.
 *
 * @throws CreateOptionsError in QEMU's words
 */
export function readCreateOptions(format: CreateFormat, text: string): CreateValues {
  const values: CreateValues = new Map();
  for (const [name, value] of parseOptionText(text)) {
    const row = ROWS[format].find((row) => row.name === name);
    if (row === undefined) throw new CreateOptionsError(`Invalid parameter '${name}'`);
    values.set(name, readValue(row, String(value)));
  }
  return values;
}

/** Whether a text can be a list of options at all: not empty, and with no comma at either end. */
export function isOptionList(text: string): boolean {
  return text !== "" && !text.startsWith(",") && /(?:^|[^,])(?:,,)*$/.test(text);
}

function readValue({ name, kind }: Row, text: string): string | number | boolean {
  if (kind === "text") return text;
  if (kind === "switch") {
    if (["on", "yes", "true", "y"].includes(text)) return true;
    if (["off", "no", "false", "n"].includes(text)) return false;
    throw new CreateOptionsError(`Parameter '${name}' expects 'on' or 'off'`);
  }
  if (kind === "number") {
    if (!/^[\t-\r ]*[+-]?(?:0x[\da-f]+|\d+)$/i.test(text)) {
      throw new CreateOptionsError(`Parameter '${name}' expects a number`);
    }
    const value = Number(text.replace(/[\s+-]/g, ""));
    return text.includes("-") ? -value : value;
  }
  const size = parseSize(text);
  if (typeof size === "number") return size;
  throw new CreateOptionsError(
    `Parameter '${name}' expects a non-negative number below 2^64`,
    "optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta- and exabytes, respectively",
  );
}

/** What an image is made with, in QEMU's form: `cluster_size=65536 extended_l2=off`. */
export function formatCreateOptions(format: CreateFormat, values: CreateValues): string {
  const shown = ROWS[format].flatMap(({ name, normally }) => {
    const value = values.get(name) ?? normally;
    if (value === undefined) return [];
    if (typeof value === "boolean") return [`${name}=${value ? "on" : "off"}`];
    return [`${name}=${typeof value === "number" ? String(BigInt(value)) : value.replaceAll(",", ",,")}`];
  });
  return [`fmt=${format}`, ...shown].join(" ");
}

/** One of some texts, or `undefined` when nothing was said. */
function choice<T extends string>(
  values: CreateValues,
  name: string,
  called: string,
  texts: readonly T[],
): T | undefined {
  const given = values.get(name);
  if (given === undefined) return undefined;
  const found = texts.find((text) => text === given);
  if (found === undefined) throw new CreateOptionsError(`Parameter '${called}' does not accept value '${given}'`);
  return found;
}

/**
 * How to make a qcow2 image by these options.
 *
 * @throws CreateOptionsError
 */
export function qcow2OptionsOf(values: CreateValues): Qcow2CreateOptions {
  refuseEncryption(values);
  const backingFormat = values.get("backing_fmt");
  if (backingFormat !== undefined && !FORMAT_NAMES.includes(String(backingFormat))) {
    throw new CreateOptionsError(`Parameter 'backing-fmt' does not accept value '${backingFormat}'`);
  }
  const text = (name: string) => values.get(name) as string | undefined;
  const on = (name: string) => values.get(name) as boolean | undefined;
  const number = (name: string) => values.get(name) as number | undefined;
  const dataFile = text("data_file");
  const preallocation = choice(values, "preallocation", "preallocation", ["off", "metadata", "falloc", "full"]);
  const compression = choice(values, "compression_type", "compression-type", ["zlib", "zstd"]);
  const compat = choice(values, "compat", "version", ["0.10", "1.1", "v2", "v3"]);
  return {
    sizeBytes: number("size") ?? 0,
    version: compat === "0.10" || compat === "v2" ? 2 : 3,
    clusterBytes: number("cluster_size"),
    backingName: text("backing_file"),
    backingFormat: text("backing_fmt"),
    preallocation,
    lazyRefcounts: on("lazy_refcounts"),
    refcountBits: number("refcount_bits"),
    dataFileName: dataFile === undefined ? undefined : filePath(dataFile),
    dataFileRaw: on("data_file_raw"),
    extendedL2: on("extended_l2"),
    compression,
  };
}

/** Formats that QEMU knows: whoever opens the image may know more of them than vblk. */
const FORMAT_NAMES = [
  ...["raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc", "parallels", "luks", "bochs", "cloop", "dmg"],
  ...["nbd", "file", "host_device", "http", "https", "ssh", "rbd", "iscsi", "gluster", "nfs", "null-co", "null-aio"],
];

/** Whether QEMU has a format or protocol of this name. */
export function isKnownFormat(name: string): boolean {
  return FORMAT_NAMES.includes(name);
}

function refuseEncryption(values: CreateValues): void {
  const wish = [...values].find(([name, value]) =>
    name === "encryption" ? value === true : name.startsWith("encrypt.")
  );
  if (wish === undefined) return;
  throw new CreateOptionsError(
    `vblk does not make encrypted images ('${wish[0]}')`,
    "make the image with qemu-img, or encrypt the disk inside the guest",
  );
}

/**
 * How to give a raw image its space.
 *
 * @throws CreateOptionsError
 */
export function rawPreallocationOf(values: CreateValues): Preallocation {
  const given = values.get("preallocation") ?? "off";
  if (given === "metadata") throw new CreateOptionsError("Unsupported preallocation mode: metadata");
  if (given === "off" || given === "falloc" || given === "full") return given;
  throw new CreateOptionsError(`invalid parameter value: ${given}`);
}

/**
 * The path in the name of a new image. As in QEMU, what is before a colon, and before any slash, is a protocol.
 *
 * @throws CreateOptionsError when that is any other than `file`
 */
export function filePath(name: string): string {
  const protocol = /^([^/]*?):/.exec(name)?.[1];
  if (protocol === undefined) return name;
  if (protocol === "file") return name.slice("file:".length);
  throw new CreateOptionsError(
    `Unknown protocol '${protocol}'`,
    "vblk makes images in files; './' before a name with a colon says that it is one",
  );
}
