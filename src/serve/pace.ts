/**
 * Whether the driver is shown each request as it ends, or all together at the end of a turn.
 *
 * Each as it ends is faster as long as the driver has a processor of its own: it goes on while we do. Where it has none
 * (a machine with more to do than processors), the kernel gives it ours each time that it is called, and takes it away
 * again: then one call for many is faster, by up to two times. Nobody tells which of the two it is, but the kernel
 * counts how often a thread had to go before it wanted to.
 *
 * @module
 */

import { involuntarySwitches } from "../host/thread.ts";

/** Turns between two looks at the count. */
const WINDOW_TURNS = 64;
/** Of so many requests one may cost us the processor. With a processor of its own a driver takes ours for one of a hundred. */
const REQUESTS_PER_SWITCH = 8;
/** Windows until it is tried again: at first, and after it was in vain again and again. */
const [SHORT_WAIT, LONG_WAIT] = [4, 256];

/** What it is decided for. */
export interface PacedDevice {
  /** Whether to show each as it ends. */
  returnsEarly: boolean;
  /** Requests taken from the rings so far. */
  readonly takenCount: number;
}

/** Decides, turn by turn. */
export class Pace {
  readonly #device: PacedDevice;
  readonly #countSwitches: () => number;
  #turns = 0;
  #switches = 0;
  #taken = 0;
  /** Windows left until it is tried again. */
  #left = 0;
  #wait = SHORT_WAIT;

  /** @param countSwitches how often this thread had to go so far */
  constructor(device: PacedDevice, countSwitches: () => number = involuntarySwitches) {
    this.#device = device;
    this.#countSwitches = countSwitches;
    device.returnsEarly = true;
  }

  /** There was something to do, or there is nothing more. */
  turned(): void {
    if (++this.#turns < WINDOW_TURNS) return;
    this.#turns = 0;
    const device = this.#device;
    const [taken, switches] = [device.takenCount, this.#countSwitches()];
    const requests = taken - this.#taken;
    const isShared = (switches - this.#switches) * REQUESTS_PER_SWITCH > requests;
    this.#switches = switches;
    this.#taken = taken;
    // Where there is so little to do it makes no difference.
    if (requests < WINDOW_TURNS / 2) return;
    if (!device.returnsEarly) {
      if (--this.#left <= 0) device.returnsEarly = true;
    } else if (isShared) {
      device.returnsEarly = false;
      this.#left = this.#wait;
      this.#wait = Math.min(LONG_WAIT, 2 * this.#wait);
    } else {
      this.#wait = Math.max(SHORT_WAIT, this.#wait / 2);
    }
  }
}
