/**
 * What images are read through: a file, memory, nothing, or one of these behind blkdebug. From a node of options, or
 * from a name that says the same (`blkdebug:CONFIG:FILE`, `null-co://`), to a storage.
 *
 * @module
 */

import { BlkdebugStorage, type InjectRule, type StateRule } from "../storage/blkdebug.ts";
import {
  BLKDEBUG_EVENTS,
  BLKDEBUG_IO_TYPES,
  DEFAULT_IO_TYPES,
  isRuleGroup,
  readRules,
  RULE_OPTIONS,
  type RuleGroup,
  type WrittenRule,
} from "../storage/blkdebug_rules.ts";
import { DenoFileStorage } from "../storage/deno_file.ts";
import { NullStorage } from "../storage/null.ts";
import type { Storage } from "../storage/storage.ts";
import { BLOCK_DRIVERS, checkOptions, driverNamed } from "./block_drivers.ts";
import { JSON_PREFIX, NodeOptions, parseJsonName } from "./block_options.ts";
import { memoryStorage, protocolOf } from "./names.ts";
import { RangeStorage } from "./raw/range_storage.ts";

/** How files are opened. */
export interface FileOptions {
  readonly readOnly: boolean;
  readonly share: boolean;
}

/** A name that the user gave, and what was said besides. */
export interface ProtocolRequest {
  readonly node: NodeOptions;
  /** A name that may start with a protocol; an option `filename` may not. */
  readonly name?: string;
  /** Which child it is, for messages. */
  readonly child: string;
}

/**
 * Opens what a node stands for.
 *
 * @throws BlockError
 */
export function openProtocol(request: ProtocolRequest, files: FileOptions): Storage {
  const { child } = request;
  let { node, name } = request;
  if (name?.startsWith(JSON_PREFIX)) {
    node = new NodeOptions(node.path, parseJsonName(name));
    name = undefined;
  }
  if (node.keys.length === 0 && name === undefined) {
    throw node.error(`A block device must be specified for "${child}"`);
  }
  const driver = driverOf(node, name);
  checkOptions(node, driver, "child");
  if (name !== undefined && node.raw("filename") !== undefined) {
    throw node.error("Can't specify 'file' and 'filename' options at the same time");
  }
  const readOnly = files.readOnly || (node.switch("read-only") ?? false);
  const share = files.share || (node.switch("force-share") ?? false);
  if (BLOCK_DRIVERS[driver].kind === "format") return openFormat(driver, node, { readOnly, share });
  return OPENERS[driver](node, name, { readOnly, share });
}

function driverOf(node: NodeOptions, name: string | undefined): string {
  const given = node.text("driver");
  if (given !== undefined) {
    const driver = driverNamed(given);
    if (driver === null) throw node.error(`Unknown driver '${given}'`);
    return driver;
  }
  if (name === undefined) {
    if (node.text("filename") === undefined) throw node.error("Must specify either driver or file");
    return "file";
  }
  const protocol = protocolOf(name);
  if (protocol === null) return "file";
  const driver = driverNamed(protocol);
  if (driver !== null && BLOCK_DRIVERS[driver].kind === "protocol") return driver;
  throw node.error(`Unknown protocol '${protocol}'`, "for a file of this name put './' before it");
}

type Opener = (node: NodeOptions, name: string | undefined, files: FileOptions) => Storage;

const OPENERS: Readonly<Record<string, Opener>> = {
  file: openFile,
  mem: openMemory,
  "null-co": openNull,
  blkdebug: openBlkdebug,
};

function openFile(node: NodeOptions, name: string | undefined, { readOnly, share }: FileOptions): Storage {
  const path = name?.replace(/^(file|host_device):/, "") ?? node.text("filename");
  if (path === undefined) throw node.error("The 'file' block driver requires a file name");
  return DenoFileStorage.open(path, { readOnly, share: share || node.text("locking") === "off" });
}

function openMemory(node: NodeOptions, name: string | undefined, { readOnly }: FileOptions): Storage {
  const size = node.size("size");
  return memoryStorage(name ?? node.text("filename") ?? `mem:${size ?? ""}`, readOnly);
}

function openNull(node: NodeOptions, name: string | undefined, { readOnly }: FileOptions): Storage {
  const given = name ?? node.text("filename");
  if (given !== undefined && !/^null-(co|aio):\/\/$/.test(given)) {
    throw node.error("The only allowed filename for this driver is 'null-co://'");
  }
  const latencyNs = node.number("latency-ns");
  if (latencyNs !== undefined && latencyNs < 0) throw node.error("latency-ns is invalid");
  return new NullStorage({
    name: given,
    sizeBytes: node.size("size"),
    readZeroes: node.switch("read-zeroes"),
    latencyNs,
    readOnly,
  });
}

/** A format below something else. Only raw has a use there: a part of a file. */
function openFormat(driver: string, node: NodeOptions, files: FileOptions): Storage {
  if (driver !== "raw") throw node.error(`vblk does not read ${driver} images inside of other images`);
  const inner = openProtocol({ node: fileNode(node, "file"), child: "file" }, files);
  return within(inner, () => rawRange(node, inner));
}

/** The options of a child; refuses a name of a node instead of them. */
export function fileNode(node: NodeOptions, child: string): NodeOptions {
  const reference = node.raw(child);
  const options = node.child(child);
  if (reference === undefined || reference === null) return options;
  if (options.keys.length > 0) {
    throw node.error("Cannot reference an existing block device with additional options or a new filename");
  }
  throw node.error(`Cannot find device='${reference}' nor node-name='${reference}'`);
}

/** The part of a file that the options of the raw driver ask for. */
export function rawRange(node: NodeOptions, inner: Storage): Storage {
  const offset = node.size("offset") ?? 0;
  const size = node.size("size") ?? null;
  return offset === 0 && size === null ? inner : new RangeStorage(inner, offset, size, node.path);
}

function openBlkdebug(node: NodeOptions, name: string | undefined, files: FileOptions): Storage {
  const { config, image } = blkdebugName(node, name);
  const written = config === undefined ? [] : readRules(config, node.path);
  for (const group of Object.keys(RULE_OPTIONS).filter(isRuleGroup)) written.push(...rulesOf(node, group));
  const injects = written.filter(({ group }) => group === "inject-error").map((rule) => injectRule(node, rule));
  const states = written.filter(({ group }) => group === "set-state").map((rule) => stateRule(node, rule));
  const inner = openProtocol({ node: fileNode(node, "image"), name: image, child: "image" }, files);
  return within(inner, () => new BlkdebugStorage(inner, injects, states));
}

/** Takes `blkdebug:CONFIG:FILE` apart. */
function blkdebugName(node: NodeOptions, name: string | undefined) {
  const given = name ?? node.text("filename");
  const config = node.text("config");
  if (given === undefined) return { config, image: node.text("x-image") };
  const rest = given.replace(/^blkdebug:/, "");
  if (rest === given) return { config, image: given };
  const colon = rest.indexOf(":");
  if (colon < 0) throw node.error("blkdebug requires both config file and image path");
  return { config: colon === 0 ? config : rest.slice(0, colon), image: rest.slice(colon + 1) };
}

/** Rules among the options: `inject-error.0.event`, or `inject-error.event` if there is one only. */
function rulesOf(node: NodeOptions, group: RuleGroup): WrittenRule[] {
  const all = node.child(group);
  const rules: WrittenRule[] = [];
  const used = new Set<string>();
  const take = (options: NodeOptions, prefix: string) => {
    const known = new Map<string, string>();
    for (const key of options.keys) {
      // What has more dots belongs to a rule with a number.
      if (prefix === "" && /^\d+\./.test(key)) continue;
      if (!RULE_OPTIONS[group].includes(key)) {
        throw node.error(`[${group}] section doesn't support the option '${key}'`);
      }
      known.set(key, options.text(key) ?? "");
      used.add(prefix + key);
    }
    if (known.size > 0) rules.push({ group, options: known });
    return known.size > 0;
  };
  take(all, "");
  for (let i = 0; take(all.child(String(i)), `${i}.`); i++);
  const unused = all.keys.find((key) => !used.has(key));
  if (unused !== undefined) throw node.error(`Unused option '${unused}' for [${group}]`);
  return rules;
}

function eventOf(node: NodeOptions, options: NodeOptions): { event: string; state: number } {
  const event = options.text("event");
  if (event === undefined) throw node.error("Missing event name for rule");
  return { event: options.oneOf("event", BLKDEBUG_EVENTS)!, state: options.number("state") ?? 0 };
}

function injectRule(node: NodeOptions, { options }: WrittenRule): InjectRule {
  const values = new NodeOptions(node.path, options);
  const sector = values.number("sector") ?? -1;
  const ioType = values.oneOf("iotype", BLKDEBUG_IO_TYPES);
  return {
    ...eventOf(node, values),
    errno: values.number("errno") ?? 5,
    offset: sector < 0 ? -1 : sector * 512,
    ioTypes: ioType === undefined ? DEFAULT_IO_TYPES : [ioType],
    once: values.switch("once") ?? false,
    immediately: values.switch("immediately") ?? false,
  };
}

function stateRule(node: NodeOptions, { options }: WrittenRule): StateRule {
  const values = new NodeOptions(node.path, options);
  return { ...eventOf(node, values), newState: values.number("new_state") ?? 0 };
}

/** Closes `inner` when what is to be put around it can't be made. */
function within(inner: Storage, make: () => Storage): Storage {
  try {
    return make();
  } catch (error) {
    inner.close();
    throw error;
  }
}
