/**
 * Descriptors that something may come in at: one io_uring poll each, which stays until it is taken away.
 *
 * @module
 */

import { POLL } from "../host/libc.ts";
import { IORING_CQE_F } from "../host/io_uring_layout.ts";
import type { UringEngine } from "../storage/uring_engine.ts";

/** A descriptor that is watched. */
export interface Watch {
  /** Ends it. The descriptor may be closed afterwards. */
  close(): void;
}

interface Watched {
  readonly fd: number;
  readonly onReady: () => void;
}

/** All watches of a thread. */
export class Watches {
  readonly #engine: UringEngine;
  readonly #owner: number;
  /** By token; a token is not given out again soon, so that what comes late for one is not taken for another's. */
  readonly #watched = new Map<number, Watched>();
  #nextToken = 0;

  constructor(engine: UringEngine) {
    this.#engine = engine;
    this.#owner = engine.register((token, _result, flags) => this.#ready(token, flags));
  }

  /** Calls `onReady` whenever there is something to read; it reads until there is nothing more. */
  add(fd: number, onReady: () => void): Watch {
    const token = this.#nextToken;
    this.#nextToken = (token + 1) % 0x7fff_ffff;
    this.#watched.set(token, { fd, onReady });
    this.#arm(token, fd);
    return { close: () => this.#remove(token) };
  }

  #arm(token: number, fd: number): void {
    while (!this.#engine.ring.preparePoll(this.#owner, token, fd, POLL.IN, true)) this.#engine.makeRoom();
  }

  #ready(token: number, flags: number): void {
    const watched = this.#watched.get(token);
    if (watched === undefined) return;
    watched.onReady();
    // The kernel may end a poll by itself, when its results overflow.
    if ((flags & IORING_CQE_F.MORE) === 0 && this.#watched.has(token)) this.#arm(token, watched.fd);
  }

  #remove(token: number): void {
    if (!this.#watched.delete(token)) return;
    const { ring } = this.#engine;
    while (!ring.prepareCancel(this.#owner, this.#nextToken, this.#owner, token)) this.#engine.makeRoom();
    this.#nextToken = (this.#nextToken + 1) % 0x7fff_ffff;
    // Before the descriptor's number can be somebody else's.
    ring.submit();
  }
}
