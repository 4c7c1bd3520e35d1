/**
 * The two ends between a back-end that has the front-end's socket and others, in threads of their own, that have some of
 * its rings ("splitter.ts"). What goes over is vhost-user itself: the others check for themselves what they are told.
 *
 * One request is added, sent behind every message. It is answered when that message has been carried out, so that the
 * messages which are never answered have an end too; and the answer says whether any ring is running.
 *
 * @module
 */

import { type Answer, dispatch, type RawMessage } from "./dispatch.ts";
import { SessionHandler } from "./message_handler.ts";
import type { Completion } from "./seams.ts";
import { encodeMessage, encodeU64, FLAG_REPLY } from "./vhost_user_layout.ts";

/** "Is that done?": far from the numbers that vhost-user gives to requests. No front-end's message is passed on with it. */
export const SETTLED_REQUEST = 0x7662_6c6b;

/** What came of a message. */
export interface PeerAnswer {
  /** The reply or acknowledgement, a whole message; `null` when the message has none. */
  readonly reply: Uint8Array | null;
  /** Whether any of its rings is running now. */
  readonly running: boolean;
}

/** A back-end that has some of the rings, as seen by the one that has the front-end's socket. */
export interface Peer {
  /**
   * Has a message carried out. The descriptors stay the caller's.
   *
   * @param raw `null` to ask only whether rings are running
   * @returns `null` when it ended the session instead
   */
  ask(raw: RawMessage | null): Promise<PeerAnswer | null>;
  /** Ends the session there; ends when nothing of it is left. */
  close(): Completion;
}

/** The other end: a session that answers `SETTLED_REQUEST` too. */
export class PeerHandler extends SessionHandler {
  override handle(raw: RawMessage): Answer | Promise<Answer> {
    if (raw.request !== SETTLED_REQUEST) return dispatch(this.session, raw);
    const payload = encodeU64(this.session.anyRunning ? 1 : 0);
    return { message: encodeMessage(SETTLED_REQUEST, FLAG_REPLY, payload), fds: [], fatal: null, refused: false };
  }
}
