/**
 * The rules of QEMU's blkdebug driver: what they are made of, and the file they can be written in.
 *
 * @module
 */

import { BlockError, BlockOptionError } from "./block_error.ts";

/** All events, by QEMU's names. Not every one of them ever happens here. */
export const BLKDEBUG_EVENTS: readonly string[] = [
  ...["l1_update", "l1_grow_alloc_table", "l1_grow_write_table", "l1_grow_activate_table", "l2_load", "l2_update"],
  ...["l2_update_compressed", "l2_alloc_cow_read", "l2_alloc_write", "read_aio", "read_backing_aio", "read_compressed"],
  ...["write_aio", "write_compressed", "vmstate_load", "vmstate_save", "cow_read", "cow_write", "reftable_load"],
  ...["reftable_grow", "reftable_update", "refblock_load", "refblock_update", "refblock_update_part", "refblock_alloc"],
  ...["refblock_alloc_hookup", "refblock_alloc_write", "refblock_alloc_write_blocks", "refblock_alloc_write_table"],
  ...["refblock_alloc_switch_table", "cluster_alloc", "cluster_alloc_bytes", "cluster_free", "flush_to_os"],
  ...["flush_to_disk", "pwritev_rmw_head", "pwritev_rmw_after_head", "pwritev_rmw_tail", "pwritev_rmw_after_tail"],
  ...["pwritev", "pwritev_zero", "pwritev_done", "empty_image_prepare", "l1_shrink_write_table"],
  ...["l1_shrink_free_l2_clusters", "cor_write", "cluster_alloc_space", "none"],
];

/** Kinds of operations that can fail, by QEMU's names. Nothing here asks a storage for its block status. */
export const BLKDEBUG_IO_TYPES: readonly string[] = [
  "read",
  "write",
  "write-zeroes",
  "discard",
  "flush",
  "block-status",
];

/** What fails when a rule does not say it. */
export const DEFAULT_IO_TYPES: readonly string[] = ["read", "write", "write-zeroes", "discard", "flush"];

/** The options of a rule as they were written. */
export type RuleOptions = ReadonlyMap<string, string>;

/** The two kinds of rules, by the names of their groups. */
export type RuleGroup = "inject-error" | "set-state";

/** The options of each group. */
export const RULE_OPTIONS: Readonly<Record<RuleGroup, readonly string[]>> = {
  "inject-error": ["event", "state", "iotype", "errno", "sector", "once", "immediately"],
  "set-state": ["event", "state", "new_state"],
};

/** Whether there is such a group. */
export function isRuleGroup(name: string): name is RuleGroup {
  return Object.hasOwn(RULE_OPTIONS, name);
}

/** A rule as it was written. */
export interface WrittenRule {
  readonly group: RuleGroup;
  readonly options: RuleOptions;
}

/** Nobody needs more. */
const CONFIG_MAX_BYTES = 1 << 20;

/**
 * Reads a file of rules.
 *
 * @param image what the user called the image, for messages
 * @throws BlockOptionError
 */
export function readRules(path: string, image: string): WrittenRule[] {
  let text: string;
  try {
    if (Deno.statSync(path).size > CONFIG_MAX_BYTES) {
      throw new BlockOptionError(image, `The blkdebug config file '${path}' is larger than 1 MiB`);
    }
    text = Deno.readTextFileSync(path);
  } catch (cause) {
    if (cause instanceof BlockOptionError) throw cause;
    const { kind, reason } = BlockError.from(cause, { path, operation: "open" });
    const hint = kind === "not-capable" ? `run again with --allow-read=${path} (right after 'deno run')` : undefined;
    throw new BlockOptionError(image, `Could not read blkdebug config file: ${reason}`, hint);
  }
  return parseRules(text, image);
}

/**
 * Takes the text of a file of rules apart: groups in brackets, a line for each option, as in `errno = "5"`.
 *
 * @throws BlockOptionError
 */
export function parseRules(text: string, image: string): WrittenRule[] {
  const rules: { group: RuleGroup; options: Map<string, string> }[] = [];
  for (const line of text.split("\n")) {
    if (line === "" || line.startsWith("#")) continue;
    const group = /^\[([^\]\s]+)(?:\s+"[^"]*")?\]/.exec(line)?.[1];
    if (group !== undefined) {
      if (!isRuleGroup(group)) throw new BlockOptionError(image, `There is no option group '${group}'`);
      rules.push({ group, options: new Map() });
      continue;
    }
    const [, key, value = ""] = /^\s*(\S+)(?:\s*=\s*"([^"]*)")?/.exec(line) ?? [];
    if (key === undefined) throw new BlockOptionError(image, "parse error");
    const rule = rules.at(-1);
    if (rule === undefined) throw new BlockOptionError(image, "no group defined");
    if (!RULE_OPTIONS[rule.group].includes(key)) throw new BlockOptionError(image, `Invalid parameter '${key}'`);
    rule.options.set(key, value);
  }
  return rules;
}
