/**
 * The block drivers that exist here and the options of each, under QEMU's names: one table, by which options are
 * checked and of which the help is made.
 *
 * @module
 */

import type { NodeOptions, OptionType } from "./block_options.ts";

/** An option of a driver. A name that ends in a dot stands for all that start with it. */
interface OptionRow {
  readonly name: string;
  readonly type: OptionType;
  readonly summary: string;
  /** Set for an option of QEMU's that is not there: why. */
  readonly refused?: string;
}

/** A driver: an image format, or a protocol that such a format is read through. */
interface DriverRow {
  readonly kind: "format" | "protocol";
  readonly summary: string;
  readonly options: readonly OptionRow[];
}

const row = (name: string, type: OptionType, summary: string): OptionRow => ({ name, type, summary });
const refused = (name: string, refused: string): OptionRow => ({ name, type: "text", summary: "", refused });

const DISCARD = ["ignore", "off", "unmap", "on"] as const;
const DETECT_ZEROES = ["off", "on", "unmap"] as const;
const OVERLAP = "not a choice here: every write of metadata is checked";
const LIMITS = "limits of a host's disk are not imitated";

/** What can be said of every node. */
const COMMON: readonly OptionRow[] = [
  row("driver", "text", "the driver's name"),
  row("node-name", "text", "a name; changes nothing here"),
  row("read-only", "switch", "open for reading only"),
  row("auto-read-only", "switch", "changes nothing here"),
  row("force-share", "switch", "take no lock"),
  row("cache.direct", "switch", "bypass the host's page cache, where that can be done"),
  row("cache.no-flush", "switch", "flushes reach nothing"),
  row("discard", DISCARD, "whether discards reach the image"),
  row("detect-zeroes", DETECT_ZEROES, "turn writes of zeros into something cheaper; unmap: give their space back"),
];

const OF_THE_IMAGE = "give it for the image, not for what is below it";
/** What makes a difference for an image as a whole only. */
const TOP_ONLY: Readonly<Record<string, readonly string[]>> = {
  "cache.no-flush": ["off", "false", "no", "n"],
  "discard": ["unmap", "on"],
  "detect-zeroes": ["off"],
};

/** Drivers by name. */
export const BLOCK_DRIVERS: Readonly<Record<string, DriverRow>> = {
  raw: {
    kind: "format",
    summary: "an image whose bytes are the disk's",
    options: [
      row("file.", "text", "options of what it is read through"),
      row("offset", "size", "where the disk begins in the file"),
      row("size", "size", "where it ends, counted from there"),
    ],
  },
  qcow2: {
    kind: "format",
    summary: "QEMU's format",
    options: [
      row("file.", "text", "options of what it is read through"),
      row("backing.", "text", "options of its backing image; backing.file.filename names another one"),
      row("backing", "text", "empty, or null in JSON: open no backing image"),
      row("data-file.", "text", "options of its data file; data-file.filename names another one"),
      row("l2-cache-size", "size", "most memory for its tables"),
      row("refcount-cache-size", "size", "most memory for its refcounts"),
      row("cache-size", "size", "most memory for both"),
      row("l2-cache-entry-size", "size", "a power of two; changes nothing here"),
      row("cache-clean-interval", "number", "changes nothing here"),
      row("lazy-refcounts", "switch", "let refcounts on disk be wrong while it is open"),
      row("pass-discard-request", "switch", "give space back that the guest discards (on)"),
      row("pass-discard-snapshot", "switch", "give space back when a snapshot is deleted (on)"),
      row("pass-discard-other", "switch", "give other space back (off)"),
      row("discard-no-unref", "switch", "keep discarded clusters where they are"),
      row("overlap-check", "text", OVERLAP),
      row("overlap-check.", "text", OVERLAP),
      refused("encrypt.", "an image's key is not given in this way"),
    ],
  },
  file: {
    kind: "protocol",
    summary: "a file or block device",
    options: [
      row("filename", "text", "its path"),
      row("locking", ["auto", "on", "off"], "off: take no lock"),
      row("aio", ["threads", "native", "io_uring"], "changes nothing here"),
      row("aio-max-batch", "number", "changes nothing here"),
      row("drop-cache", "switch", "changes nothing here"),
      row("x-check-cache-dropped", "switch", "changes nothing here"),
      refused("pr-manager", "there are no SCSI commands here"),
    ],
  },
  mem: {
    kind: "protocol",
    summary: "a disk in memory (vblk's own)",
    options: [row("size", "size", "its size"), row("filename", "text", "mem:SIZE")],
  },
  "null-co": {
    kind: "protocol",
    summary: "a disk that keeps nothing",
    options: [
      row("filename", "text", "null-co:// and nothing else"),
      row("size", "size", "its size (1G)"),
      row("read-zeroes", "switch", "fill with zeros what is read (off)"),
      row("latency-ns", "number", "how long a request takes"),
    ],
  },
  blkdebug: {
    kind: "protocol",
    summary: "makes requests fail or wait, by rules",
    options: [
      row("image.", "text", "options of what is below it"),
      row("filename", "text", "what is below it, or blkdebug:CONFIG:FILE"),
      row("x-image", "text", "what is below it"),
      row("config", "text", "a file of rules"),
      row("inject-error.", "text", "N.event, N.errno, N.sector, N.once, N.immediately, N.iotype, N.state"),
      row("set-state.", "text", "N.event, N.state, N.new_state"),
      ...["align", "max-transfer", "opt-write-zero", "max-write-zero", "opt-discard", "max-discard"]
        .map((name) => refused(name, LIMITS)),
      refused("take-child-perms.", "there are no permissions between nodes here"),
      refused("unshare-child-perms.", "there are no permissions between nodes here"),
    ],
  },
};

/** Other names of drivers. */
const ALIASES: Readonly<Record<string, string>> = { "null-aio": "null-co", "host_device": "file" };

/** The name under which a driver is in the table, or `null`. */
export function driverNamed(name: string): string | null {
  const known = Object.hasOwn(ALIASES, name) ? ALIASES[name] : name;
  return Object.hasOwn(BLOCK_DRIVERS, known) ? known : null;
}

/** Where a node is: at the top its common options have been taken away before. */
export type NodePlace = "top" | "child";

/**
 * Checks that a driver has the options of a node, and the types of their values.
 *
 * @throws BlockOptionError
 */
export function checkOptions(node: NodeOptions, driver: string, place: NodePlace): void {
  const { kind, options } = BLOCK_DRIVERS[driver];
  for (const key of node.keys) {
    const found = [...options, ...COMMON].find(({ name }) =>
      name === key || (name.endsWith(".") && key.startsWith(name))
    );
    // What `file` and its like refer to is judged by who opens the child.
    if (found === undefined && options.some(({ name }) => name === `${key}.`)) continue;
    if (found === undefined) {
      throw node.error(
        kind === "format"
          ? `Block format '${driver}' does not support the option '${key}'`
          : `Block protocol '${driver}' doesn't support the option '${key}'`,
        "'vblk attach --image-opts help' lists the options",
      );
    }
    if (found.refused !== undefined) {
      throw node.error(`${driver}: the option '${key}' is not supported: ${found.refused}`);
    }
    if (!found.name.endsWith(".")) node.check(key, found.type);
    const harmless = place === "child" && Object.hasOwn(TOP_ONLY, key) ? TOP_ONLY[key] : null;
    if (harmless !== null && !harmless.includes(node.text(key) ?? "")) {
      throw node.error(`${driver}: the option '${key}' is not supported here: ${OF_THE_IMAGE}`);
    }
  }
}

/** What `--image-opts help` prints: lines. */
export function blockOptionsHelp(): string[] {
  const lines = ["Options of an image, as in driver=qcow2,file.filename=disk.qcow2 (,, is a comma in a value):"];
  const list = (rows: readonly OptionRow[]) => {
    for (const { name, type, summary, refused } of rows) {
      if (refused !== undefined) continue;
      const value = typeof type !== "string" ? type.join("|") : VALUE_NAMES[type];
      lines.push(`  ${(name.endsWith(".") ? `${name}OPTION=` : `${name}=`) + value}`.padEnd(46) + summary);
    }
  };
  lines.push("", "every driver");
  list(COMMON);
  for (const [name, { kind, summary, options }] of Object.entries(BLOCK_DRIVERS)) {
    lines.push("", `${name} (${kind}): ${summary}`);
    list(options);
  }
  return lines;
}

const VALUE_NAMES = { text: "TEXT", size: "SIZE", number: "N", switch: "on|off" } as const;

/** What is said of an image as a whole, whatever its driver. */
export interface CommonOptions {
  readonly readOnly?: boolean;
  readonly share?: boolean;
  readonly direct?: boolean;
  readonly noFlush?: boolean;
  readonly discard?: boolean;
  readonly detectZeroes?: "off" | "on" | "unmap";
}

/**
 * Reads what is common to all drivers.
 *
 * @throws BlockOptionError
 */
export function commonOptions(node: NodeOptions): CommonOptions {
  const discard = node.text("discard");
  if (discard !== undefined && !DISCARD.some((word) => word === discard)) throw node.error("Invalid discard option");
  return {
    readOnly: node.switch("read-only"),
    share: node.switch("force-share"),
    direct: node.switch("cache.direct"),
    noFlush: node.switch("cache.no-flush"),
    discard: discard === undefined ? undefined : discard === "unmap" || discard === "on",
    detectZeroes: node.oneOf("detect-zeroes", DETECT_ZEROES),
  };
}
