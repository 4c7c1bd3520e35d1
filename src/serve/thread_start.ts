/**
 * What the threads of a served image are started with, and what they tell: plain values that can be sent.
 *
 * @module
 */

import type { BlkOptions } from "../blk/options.ts";
import type { OpenOptions } from "../image/open.ts";
import type { ControlEnd } from "./control.ts";
import type { ObserveStart } from "./observers.ts";

/** What every thread needs. */
export interface CommonStart {
  readonly image: string;
  readonly open: Pick<OpenOptions, "format" | "readOnly" | "snapshot" | "share" | "l2CacheBytes">;
  readonly direct: boolean;
  readonly ignoreFlush: boolean;
  readonly ignoreDiscard: boolean;
  readonly device: Partial<BlkOptions>;
  /** How long to look for something to do before sleeping. */
  readonly pollNanoseconds: number;
  readonly observe: ObserveStart;
}

/** What the first thread is started with: it has the socket, and all queues when it is the only one. */
export interface ThreadStart extends CommonStart {
  readonly part: "first";
  readonly socketPath: string | null;
  /** systemd's variables. */
  readonly passed: { readonly pid: string | undefined; readonly count: string | undefined };
  /** End after the first front-end. */
  readonly once: boolean;
  readonly control: ControlEnd;
  /** Where to make a socket for commands, if anywhere. */
  readonly controlPath: string | null;
  /** The numbers of the threads that have queues of their own: as many as there are such threads. */
  readonly otherFigures: readonly SharedArrayBuffer[];
}

/** What the first thread says of a thread that has queues of its own: descriptors, which that thread takes over. */
export interface QueueThreadEnds {
  /** Where sessions with the front-end come from. */
  readonly sessions: number;
  /** Where commands of the first thread come from. */
  readonly commands: number;
}

/** What a thread is started with that has some of the queues. */
export interface QueueThreadStart extends CommonStart {
  readonly part: "queues";
  readonly ends: QueueThreadEnds;
  /** Of the file that the first thread has opened, and locked. */
  readonly identity: string;
}

/** Why a thread has ended before it was to. */
export interface ThreadFailure {
  readonly message: string;
  readonly hint?: string;
  /** Of a bug of ours; a failure has none. */
  readonly stack?: string;
}

/** What a thread tells. */
export type ThreadNews =
  | {
    readonly news: "ready";
    readonly sizeBytes: number;
    readonly format: string;
    readonly identity: string;
    readonly ends: readonly QueueThreadEnds[];
  }
  | { readonly news: "message"; readonly text: string; readonly hint?: string }
  /** The numbers in shared memory are up to date. */
  | { readonly news: "statistics" }
  | { readonly news: "ended"; readonly error?: ThreadFailure };
