/**
 * Descriptors that something may come in at: one io_uring poll each, which stays until it is taken away.
 *
 * @module
 */

import { POLL } from "../host/libc.ts";
import { IORING_CQE_F, OP } from "../host/io_uring_layout.ts";
import type { UringEngine } from "../storage/uring_engine.ts";

/** A descriptor that is watched. */
export interface Watch {
  /** Calls `onReady` once more soon, after others had their turn: for who left something unread. */
  again(): void;
  /** Ends it. The descriptor may be closed afterwards. */
  close(): void;
}

interface Watched {
  readonly fd: number;
  readonly onReady: () => void;
  /** Its next turn comes by itself. */
  hasTurn: boolean;
}

/** All watches of a thread. */
export class Watches {
  readonly #engine: UringEngine;
  readonly #owner: number;
  readonly #againOwner: number;
  /** By token; a token is not given out again soon, so that what comes late for one is not taken for another's. */
  readonly #watched = new Map<number, Watched>();
  #nextToken = 0;

  constructor(engine: UringEngine) {
    this.#engine = engine;
    this.#owner = engine.register((token, _result, flags) => this.#ready(token, flags));
    this.#againOwner = engine.register((token) => this.#nextTurn(token));
  }

  /** Calls `onReady` whenever there is something to read; it reads until there is nothing more. */
  add(fd: number, onReady: () => void): Watch {
    const token = this.#nextToken;
    this.#nextToken = (token + 1) % 0x7fff_ffff;
    this.#watched.set(token, { fd, onReady, hasTurn: false });
    this.#arm(token, fd);
    return {
      again: () => this.#again(token),
      close: () => this.#remove(token),
    };
  }

  #arm(token: number, fd: number): void {
    while (!this.#engine.ring.preparePoll(this.#owner, token, fd, POLL.IN, true)) this.#engine.makeRoom();
  }

  #ready(token: number, flags: number): void {
    const watched = this.#watched.get(token);
    if (watched === undefined) return;
    // What comes in meanwhile is part of the next turn: each piece would have one of its own otherwise.
    if (!watched.hasTurn) watched.onReady();
    // The kernel may end a poll by itself, when its results overflow.
    if ((flags & IORING_CQE_F.MORE) === 0 && this.#watched.has(token)) this.#arm(token, watched.fd);
  }

  #again(token: number): void {
    const watched = this.#watched.get(token);
    if (watched === undefined || watched.hasTurn) return;
    watched.hasTurn = true;
    this.#engine.submitAny(this.#againOwner, token, OP.NOP, -1, 0, 0, 0);
  }

  #nextTurn(token: number): void {
    const watched = this.#watched.get(token);
    if (watched === undefined) return;
    watched.hasTurn = false;
    watched.onReady();
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
