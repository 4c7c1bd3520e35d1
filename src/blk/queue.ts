/**
 * One request queue at work: takes chains off the ring, runs requests, returns buffers, and notifies: once for all that
 * ends together, or, while the driver runs beside it, as soon as it has something for it.
 *
 * @module
 */

import { after, BlockError, type Completion } from "../image/image.ts";
import type { Violation } from "../virtio/violation.ts";
import { addCounters, newCounters, type VirtqueueCounters } from "../virtio/virtqueue/counters.ts";
import type { Virtqueue } from "../virtio/virtqueue/virtqueue.ts";
import { VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK } from "./blk_layout.ts";
import { type BlkContext, execute } from "./execute.ts";
import type { BlkObservers } from "./observers.ts";
import { BlkRequest } from "./request.ts";
import { traceEnd, traceStart } from "./request_trace.ts";

/** What a queue tells its device. */
export interface BlkQueueEvents {
  usedBuffer(): void;
  needsReset(violation: Violation): void;
  /** As in `DeviceEvents`. */
  besideDriver(): boolean;
  /** Whether such a driver is shown each request as it ends. */
  returnsEarly(): boolean;
}

/**
 * Requests that are started in one turn, while the driver runs beside us: it can add one for each that is returned, and
 * other queues, and whoever wants us to end, must have their turn.
 */
const MOST_IN_TURN = 64;
/** Requests that end before a driver beside us, which has many more in flight, sees the first of them. */
const MOST_TOGETHER = 8;

/** A request queue of the block device. */
export class BlkQueue {
  readonly #index: number;
  readonly #context: BlkContext;
  readonly #observers: BlkObservers;
  readonly #events: BlkQueueEvents;
  /** Requests that are not in use. One is made only when more are in flight than ever before. */
  readonly #free: BlkRequest[] = [];
  #queue: Virtqueue | null = null;
  /** What rings that are gone did. */
  readonly #retired: VirtqueueCounters = newCounters();
  #inFlight = 0;
  #running = false;
  #runAgain = false;
  /** Somebody looks at the ring all the time: the driver need not notify. */
  #polled = false;
  /** How many callers want nothing to be started. */
  #pauses = 0;
  #publishScheduled = false;
  /** A turn has ended before all that was available was started. */
  #hasMore = false;
  /** Called when the last request in flight has ended. */
  #onIdle: (() => void) | null = null;

  constructor(index: number, context: BlkContext, observers: BlkObservers, events: BlkQueueEvents) {
    this.#index = index;
    this.#context = context;
    this.#observers = observers;
    this.#events = events;
  }

  /** What all rings of this queue did so far. */
  get counters(): VirtqueueCounters {
    const sum = addCounters(newCounters(), this.#retired);
    return this.#queue === null ? sum : addCounters(sum, this.#queue.counters);
  }

  /** Requests that were started and not returned to the driver; 0 only when there are none. */
  get inFlightCount(): number {
    // Those that have ended and that the driver was not shown yet count too: whoever waits for the last must wait for
    // that.
    return this.#inFlight + (this.#publishScheduled ? 1 : 0);
  }

  /** Takes a ring to work on. */
  start(queue: Virtqueue): void {
    this.#queue = queue;
  }

  /**
   * Lets go of the ring at once; ends when no request is in flight any more. Until then the image may still be
   * reading from or writing to guest memory, so the driver must not be told that it has its memory back.
   */
  stop(): Completion {
    if (this.#queue !== null) addCounters(this.#retired, this.#queue.counters);
    this.#queue = null;
    return this.#idle();
  }

  /** Starts nothing more until `resume`; ends when all requests that were in flight have been returned to the driver. */
  pause(): Completion {
    this.#pauses++;
    return after(this.#idle(), () => this.#publish());
  }

  /** Goes on with what became available meanwhile. */
  resume(): void {
    if (--this.#pauses === 0) this.run();
  }

  #idle(): Completion {
    if (this.#inFlight === 0) return;
    return new Promise((resolve) => {
      const before = this.#onIdle;
      this.#onIdle = () => {
        before?.();
        resolve();
      };
    });
  }

  /**
   * Runs everything that is available, and leaves it to the caller to look again: the driver is not asked to notify
   * until `endPolling`.
   *
   * @returns whether there was anything
   */
  poll(): boolean {
    const queue = this.#queue;
    if (queue === null) return false;
    const before = queue.counters.popped;
    this.#polled = true;
    this.run();
    return queue.counters.popped !== before;
  }

  /**
   * From here on the driver has to notify. What became available before that was known to it is run.
   *
   * @returns whether that is so: `false` when there is more to run than fits into one turn
   */
  endPolling(): boolean {
    if (this.#polled || this.#hasMore) {
      this.#polled = false;
      this.run();
    }
    return !this.#hasMore;
  }

  /** Runs everything that is available. */
  run(): void {
    // Completing a request can make the driver kick from within: note it, and let the outer call go on.
    if (this.#running) {
      this.#runAgain = true;
      return;
    }
    this.#running = true;
    try {
      do {
        this.#runAgain = false;
        this.#drain();
      } while (this.#runAgain);
    } finally {
      this.#running = false;
    }
  }

  #drain(): void {
    const queue = this.#queue;
    this.#hasMore = false;
    if (queue === null || queue.violation !== null || this.#pauses > 0) return;
    const besideDriver = this.#events.besideDriver();
    // Without EVENT_IDX a driver that is at work can't say so, and would be called for each.
    const early = besideDriver && queue.eventIdx && this.#events.returnsEarly();
    let left = besideDriver ? MOST_IN_TURN : Infinity;
    const { popped } = queue.counters;
    // While we look anyway, a notification would be an exit for nothing.
    queue.disableNotifications();
    do {
      for (let request = this.#take(); left > 0 && queue.pop(request.chain); request = this.#take(), left--) {
        this.#startRequest(queue, request);
        if (this.#queue !== queue || queue.violation !== null) break;
        if (early && this.#isWorthShowing(queue)) this.#publish();
      }
      if (this.#queue !== queue) return;
      if (queue.violation !== null) {
        this.#broken(queue, queue.violation);
        break;
      }
      this.#hasMore = left <= 0;
    } while (!this.#polled && !this.#hasMore && queue.enableNotifications());
    if (queue.counters.popped !== popped) queue.counters.bursts++;
    this.#publish();
  }

  /**
   * Whether to return what has ended while there is more to do: at once while the driver may be waiting for it, and some
   * together while it has so much in flight that it surely has enough to do. Each time costs both sides a cache line
   * or two, and often a call.
   */
  #isWorthShowing(queue: Virtqueue): boolean {
    const { pushed, published } = queue.counters;
    return pushed - published >= Math.min(MOST_TOGETHER, Math.max(1, queue.backlog >> 2));
  }

  /** The request to pop the next chain into. It leaves the free list only when it is started. */
  #take(): BlkRequest {
    if (this.#free.length === 0) this.#free.push(new BlkRequest());
    return this.#free[this.#free.length - 1];
  }

  #startRequest(queue: Virtqueue, request: BlkRequest): void {
    this.#free.pop();
    this.#inFlight++;
    const { trace, requests } = this.#observers;
    if (requests !== undefined) requests.started(request);
    if (trace !== undefined) request.startedAt = performance.now();
    const answerable = request.parse();
    if (trace !== undefined) traceStart(trace, this.#index, request, this.#context.image);
    if (!answerable) {
      // Nothing can be told in-band, and the driver would take whatever its status byte held for our answer.
      queue.violation = request.violation;
      this.#end(request);
      return;
    }
    if (request.violation !== null) {
      this.#finish(queue, request);
      return;
    }
    let completion: Completion = undefined;
    try {
      completion = execute(request, this.#context);
    } catch (error) {
      this.#fail(request, error);
    }
    if (completion === undefined) this.#finish(queue, request);
    else this.#finishLater(queue, request, completion);
  }

  #finishLater(queue: Virtqueue, request: BlkRequest, completion: Promise<void>): void {
    const ended = completion
      .catch((error) => this.#fail(request, error))
      .then(() => {
        this.#finish(queue, request);
        // Requests that end in the same turn of the event loop share one notification.
        if (this.#publishScheduled) return;
        this.#publishScheduled = true;
        queueMicrotask(() => {
          this.#publishScheduled = false;
          this.#publish();
        });
      });
    const { crashed } = this.#observers;
    if (crashed !== undefined) ended.catch(crashed);
  }

  #fail(request: BlkRequest, error: unknown): void {
    // Anything but a BlockError is a bug of ours: crash loudly.
    if (!(error instanceof BlockError)) throw error;
    request.status = VIRTIO_BLK_S_IOERR;
    this.#observers.hostError?.(error);
    this.#observers.trace?.({
      event: "host-error",
      queue: this.#index,
      head: request.chain.head,
      message: error.message,
    });
  }

  #finish(queue: Virtqueue, request: BlkRequest): void {
    // After a reset the memory is the driver's again: nothing is written, nobody is told.
    if (this.#queue === queue) {
      // What a failed read left behind is not data.
      if (request.status !== VIRTIO_BLK_S_OK) request.outputFilled = 0;
      const bytesWritten = request.finish();
      const { trace } = this.#observers;
      if (trace !== undefined) traceEnd(trace, this.#index, request, bytesWritten);
      queue.push(request.chain, bytesWritten);
    }
    this.#end(request);
  }

  #end(request: BlkRequest): void {
    const { requests } = this.#observers;
    if (requests !== undefined) requests.ended(request);
    this.#free.push(request);
    if (--this.#inFlight === 0 && this.#onIdle !== null) {
      const onIdle = this.#onIdle;
      this.#onIdle = null;
      onIdle();
    }
  }

  #publish(): void {
    const queue = this.#queue;
    if (queue === null) return;
    const before = queue.counters.pushed;
    const published = queue.counters.published;
    const wanted = queue.publish();
    if (before !== published) {
      this.#observers.trace?.({ event: "call", queue: this.#index, buffers: before - published, sent: wanted });
    }
    if (wanted) this.#events.usedBuffer();
  }

  #broken(queue: Virtqueue, violation: Violation): void {
    const chain = this.#take().chain;
    this.#observers.trace?.({
      event: "violation",
      queue: this.#index,
      consequence: "device needs reset",
      violation,
      descriptors: chain.descriptors,
    });
    // What was completed before is returned before the driver is told.
    this.#publish();
    // A driver that was told so may have reset the device already.
    if (this.#queue === queue) this.#events.needsReset(violation);
  }
}
