/** What QEMU keeps for a back-end that was killed: the requests that it had taken and not returned. */

import {
  inflightAreaBytes,
  PACKED_REGION,
  PACKED_STATE,
  QueueRegion,
  SPLIT_REGION,
  SPLIT_STATE,
} from "../../../src/transport/vhost_user/inflight_layout.ts";
import { type Folder, run } from "../../storage/support.ts";

/** Entries of a ring's region: as many as QEMU's longest ring has. */
const ENTRIES = 1024;

/** Requests of the first ring. */
export interface LeftBehind {
  /** Heads or buffer IDs, in the order in which they were taken. */
  readonly heads: readonly number[];
  /** How many were returned that were taken later than the first of these. */
  readonly overtook: number;
}

/** Reads it while no back-end runs: a descriptor of QEMU's is the area. */
export function leftBehind(qemu: number, folder: Folder, packed: boolean): LeftBehind {
  const copy = folder.file("area");
  // Deno lets nobody look into /proc who has not all permissions.
  const find =
    `for fd in /proc/${qemu}/fd/*; do case $(readlink $fd) in *vblk-inflight*) cat $fd >${copy};; esac; done`;
  run("sh", "-c", find);
  const bytes = Deno.readFileSync(copy);
  if (bytes.byteLength !== inflightAreaBytes(1, ENTRIES)) throw new Error(`the area has ${bytes.byteLength} bytes`);
  const region = new QueueRegion(bytes, 0, ENTRIES);
  const [start, layout] = packed ? [PACKED_REGION.desc, PACKED_STATE] : [SPLIT_REGION.desc, SPLIT_STATE];
  const found: { head: number; counter: number }[] = [];
  for (let entry = 0; entry < ENTRIES; entry++) {
    const at = start + entry * layout.bytes;
    if (region.byte(at + layout.inflight) !== 1) continue;
    const head = packed ? region.word(at + PACKED_STATE.id) : entry;
    found.push({ head, counter: Number(region.counter(at + layout.counter)) });
  }
  found.sort((a, b) => a.counter - b.counter);
  const span = found.length === 0 ? 0 : found.at(-1)!.counter - found[0].counter + 1;
  return { heads: found.map(({ head }) => head), overtook: span - found.length };
}
