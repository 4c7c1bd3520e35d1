/**
 * What a connection hands its messages to: a session that carries them out, or somebody between a front-end and several
 * sessions.
 *
 * @module
 */

import type { Violation } from "../../virtio/violation.ts";
import { type Answer, dispatch, type RawMessage } from "./dispatch.ts";
import type { Completion, VhostUserHost } from "./seams.ts";
import type { Session } from "./session.ts";

/** Carries out the messages of one connection, one after the other. */
export interface MessageHandler {
  readonly host: Pick<VhostUserHost, "closeFd">;
  /** Carries one out. Its descriptors are closed by the caller, but for those that were taken out of it. */
  handle(raw: RawMessage): Answer | Promise<Answer>;
  /** Hears of a message that can't even be read. */
  refused(violation: Violation): void;
  /** Gives everything back: nothing is in flight when that has ended. No message comes meanwhile, nor afterwards. */
  close(): Completion;
}

/** The usual one: the session itself. */
export class SessionHandler implements MessageHandler {
  protected readonly session: Session;

  constructor(session: Session) {
    this.session = session;
  }

  get host(): VhostUserHost {
    return this.session.host;
  }

  handle(raw: RawMessage): Answer | Promise<Answer> {
    return dispatch(this.session, raw);
  }

  refused(violation: Violation): void {
    this.session.refused(violation);
  }

  close(): Completion {
    return this.session.close();
  }
}
