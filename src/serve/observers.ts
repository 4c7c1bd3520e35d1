/**
 * Who looks on while a device is served: those who count, those who trace, and those who are told what went wrong. Each
 * costs nothing when nobody asked for it.
 *
 * @module
 */

import type { BlkDevice } from "../blk/device.ts";
import type { BlkObservers } from "../blk/observers.ts";
import type { Image } from "../image/image.ts";
import type { BlockError } from "../storage/block_error.ts";
import type { TraceSink } from "../trace/events.ts";
import type { EndReason } from "../transport/vhost_user/connection.ts";
import type { SessionObservers } from "../transport/vhost_user/session.ts";
import { formatVhostUserViolation } from "../transport/vhost_user/rules.ts";
import type { Violation } from "../virtio/violation.ts";
import { Figures } from "./figures.ts";
import { type SharedTrace, type TraceForm, traceSink } from "./trace_output.ts";

/** What is to be observed: it can be sent to a thread. */
export interface ObserveStart {
  /** Where numbers go. */
  readonly figures: SharedArrayBuffer;
  /** Whether every request is counted and timed, or only what the rings count anyway. */
  readonly requests: boolean;
  readonly trace: TraceForm | null;
  /** Set when several threads trace to one output. */
  readonly sharedTrace: SharedTrace | null;
}

/** Says something to the user. */
export type Tell = (text: string, hint?: string) => void;

/** The observers of one thread. */
export class Observers {
  readonly figures: Figures;
  /** For the block device. */
  readonly device: BlkObservers;
  /** For the vhost-user back-end. */
  readonly session: SessionObservers;
  readonly #tell: Tell;
  /** The last broken rule that was shown: several parts tell of one. */
  #shown: Violation | null = null;

  private constructor(figures: Figures, countsRequests: boolean, trace: TraceSink | undefined, tell: Tell) {
    this.figures = figures;
    this.#tell = tell;
    const traced = trace && ((event: Parameters<TraceSink>[0]) => {
      if (event.event === "violation") this.#shown = event.violation;
      trace(event);
    });
    this.device = {
      hostError: (error: BlockError) => tell(error.message, error.hint),
      ...traced && { trace: traced },
      ...countsRequests && { requests: figures },
    };
    this.session = {
      ...traced && { trace: traced },
      refused: (violation) => {
        if (this.#shown === violation) return;
        this.#shown = violation;
        traced?.({ event: "violation", consequence: "refused", violation });
        const hint = sharedMemoryHint(violation);
        if (traced === undefined || hint !== undefined) tell(formatVhostUserViolation(violation), hint);
      },
      kickedInVain: (ring) => {
        tell(
          `ring ${ring} is kicked, and nothing is in it: the front-end seems to keep the guest's memory to itself`,
          SHARE,
        );
      },
    };
  }

  /** A front-end has connected. */
  connected(): void {
    this.figures.set({ frontEnds: this.figures.get("frontEnds") + 1, connected: 1 });
  }

  /** Nothing is left of a front-end's connection. */
  disconnected(reason: EndReason): void {
    this.figures.set({ connected: 0 });
    if (reason.kind !== "refused") return;
    this.session.refused?.(reason.violation);
    this.#tell("the front-end could not be told that it was refused, so its connection was ended");
  }

  /** Loads what is needed. */
  static async create({ figures, requests, trace, sharedTrace }: ObserveStart, tell: Tell): Promise<Observers> {
    const sink = trace === null ? undefined : await traceSink(trace, undefined, sharedTrace);
    return new Observers(new Figures(figures), requests, sink, tell);
  }

  /** Brings up to date what is not counted request by request. */
  refresh(device: BlkDevice, image: Image, kicks: number): void {
    const { counters, inFlightCount } = device;
    const { bursts, replayed, published, calls, callsSuppressed } = counters;
    const { tableLookups } = image as { tableLookups?: { hits: number; misses: number } };
    const { hits, misses } = tableLookups ?? { hits: 0, misses: 0 };
    this.figures.set({
      batches: bursts,
      replayed,
      published,
      calls,
      callsSuppressed,
      kicks,
      tableHits: hits,
      tableMisses: misses,
      sizeBytes: image.sizeBytes,
    });
    if (this.device.requests === undefined) this.figures.set({ inFlight: inFlightCount });
  }
}

const SHARE = "the guest's memory must be shared. QEMU: -object memory-backend-memfd,share=on,id=mem,size=SIZE " +
  "-machine memory-backend=mem; Cloud Hypervisor: --memory shared=on";

/** Rules that a front-end breaks when it has no memory to share. */
const MEMORY_RULES: readonly string[] = ["memory-map", "fds-missing"];

/** What to do about memory that can't be shared; nothing for other mistakes. */
export function sharedMemoryHint({ rule, found }: Violation): string | undefined {
  // QEMU leaves memory out that has no descriptor, all of it perhaps, and says nothing.
  if (rule === "ring-memory") return /\b0 regions/.test(found) ? SHARE : undefined;
  if (!MEMORY_RULES.includes(rule) || rule === "fds-missing" && !/MEM_(TABLE|REG)/.test(found)) return undefined;
  return SHARE;
}
