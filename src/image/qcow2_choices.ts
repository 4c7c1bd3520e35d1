/**
 * The options of the qcow2 driver as values.
 *
 * @module
 */

import type { NodeOptions } from "./block_options.ts";

/** What the user chose for a qcow2 image; what was not said is left out. */
export interface Qcow2Choices {
  /** Most memory for L2 tables, in bytes. */
  readonly l2CacheBytes?: number;
  /** Most memory for refcount blocks, in bytes. */
  readonly refcountCacheBytes?: number;
  readonly lazyRefcounts?: boolean;
  /** Whether the file gets back the space of clusters that the guest discards. */
  readonly passDiscardRequest?: boolean;
  /** The same, for those that only a deleted snapshot used. */
  readonly passDiscardSnapshot?: boolean;
  /** The same, for all others. */
  readonly passDiscardOther?: boolean;
  /** Keep discarded clusters allocated. */
  readonly discardNoUnref?: boolean;
}

const OVERLAP_TEMPLATES = ["none", "constant", "cached", "all"];
/** As much as QEMU keeps for refcounts when it can: four blocks of the default size. */
const REFCOUNT_CACHE_BYTES = 4 << 16;

/**
 * Reads the options.
 *
 * @throws BlockOptionError
 */
export function qcow2Choices(node: NodeOptions): Qcow2Choices {
  checkOverlap(node);
  checkEntrySize(node);
  const choices: Record<keyof Qcow2Choices, number | boolean | undefined> = {
    ...cacheSizes(node),
    lazyRefcounts: node.switch("lazy-refcounts"),
    passDiscardRequest: node.switch("pass-discard-request"),
    passDiscardSnapshot: node.switch("pass-discard-snapshot"),
    passDiscardOther: node.switch("pass-discard-other"),
    discardNoUnref: node.switch("discard-no-unref"),
  };
  return Object.fromEntries(Object.entries(choices).filter(([, value]) => value !== undefined));
}

function cacheSizes(node: NodeOptions) {
  const both = node.size("cache-size");
  const l2 = node.size("l2-cache-size");
  const refcounts = node.size("refcount-cache-size");
  if (both === undefined) return { l2CacheBytes: l2, refcountCacheBytes: refcounts };
  if (l2 !== undefined && refcounts !== undefined) {
    throw node.error("cache-size, l2-cache-size and refcount-cache-size may not be set at the same time");
  }
  if (l2 !== undefined && l2 > both) throw node.error("l2-cache-size may not exceed cache-size");
  if (refcounts !== undefined && refcounts > both) throw node.error("refcount-cache-size may not exceed cache-size");
  const forRefcounts = refcounts ?? (l2 === undefined ? Math.min(both, REFCOUNT_CACHE_BYTES) : both - l2);
  return { l2CacheBytes: both - forRefcounts, refcountCacheBytes: forRefcounts };
}

function checkOverlap(node: NodeOptions): void {
  const short = node.text("overlap-check");
  const template = node.text("overlap-check.template");
  if (short !== undefined && template !== undefined && short !== template) {
    throw node.error(
      `Conflicting values for qcow2 options 'overlap-check' ('${short}') and 'overlap-check.template' ('${template}')`,
    );
  }
  const given = short ?? template;
  if (given === undefined || OVERLAP_TEMPLATES.includes(given)) return;
  throw node.error(
    `Unsupported value '${given}' for qcow2 option 'overlap-check'. Allowed are any of the following: ` +
      OVERLAP_TEMPLATES.join(", "),
  );
}

function checkEntrySize(node: NodeOptions): void {
  const size = node.size("l2-cache-entry-size");
  if (size === undefined || (size >= 512 && Number.isInteger(Math.log2(size)))) return;
  throw node.error("L2 cache entry size must be a power of two between 512 and the cluster size");
}
