/**
 * Carries one whole message out, whichever it is: looks its row up, checks feature, payload, descriptors and state, runs
 * it, and says what is sent back.
 *
 * @module
 */

import type { Violation } from "../../virtio/violation.ts";
import { type Message, type MessageRow, MESSAGES, type Outcome, REFUSED } from "./messages.ts";
import { vhostUserViolation } from "./rules.ts";
import type { MessageFds } from "./seams.ts";
import type { Session } from "./session.ts";
import {
  encodeMessage,
  encodeU64,
  FLAG_NEED_REPLY,
  FLAG_REPLY,
  REQUEST,
  type RequestName,
} from "./vhost_user_layout.ts";

/** A message as it came: header and payload. */
export interface RawMessage {
  readonly request: number;
  readonly flags: number;
  readonly payload: Uint8Array;
  readonly fds: MessageFds;
}

/** What is to be done about a message: something to send, and why the connection must end, if it must. */
export interface Answer {
  readonly message: Uint8Array | null;
  readonly fds: readonly number[];
  readonly fatal: Violation | null;
  /** Whether the message was refused, told or not. */
  readonly refused: boolean;
}

/** Done, and nothing to say. */
export const NOTHING: Answer = { message: null, fds: [], fatal: null, refused: false };

const NAMES: ReadonlyMap<number, RequestName> = new Map(
  Object.entries(REQUEST).map(([name, id]) => [id, name as RequestName]),
);

/** Name of a request, for people. */
export function requestName(request: number): string {
  return NAMES.get(request) ?? `request ${request}`;
}

/** Carries a message out. */
export function dispatch(session: Session, raw: RawMessage): Answer | Promise<Answer> {
  const name = NAMES.get(raw.request);
  const row = name === undefined ? undefined : MESSAGES[name];
  if (name === undefined || row === undefined) return answer(session, raw, false, refuse(raw.request, name));
  const { payload: bytes, fds } = raw;
  const message: Message = { bytes, view: new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), fds };
  const refused = check(session, name, row, message);
  const outcome = refused ?? row.run(session, message);
  const replies = row.replies ?? false;
  if (outcome instanceof Promise) return outcome.then((later) => answer(session, raw, replies, later));
  return answer(session, raw, replies, outcome);
}

function refuse(request: number, name: RequestName | undefined): Violation {
  if (name === undefined) return vhostUserViolation("message-unknown", `request ${request} came`);
  return vhostUserViolation("message-refused", `${name} came, which belongs to ${REFUSED[name]}`);
}

function check(session: Session, name: RequestName, row: MessageRow, { view, fds }: Message): Violation | null {
  if (row.feature !== undefined && !session.negotiated(row.feature)) {
    return vhostUserViolation("feature-needed", `${name} came without ${row.feature}`);
  }
  if (!row.payload.accepts(view)) {
    const found = `${name} came with ${view.byteLength} bytes that are not ${row.payload.name}`;
    return vhostUserViolation("payload-size", found);
  }
  const [least, most] = row.fds(view);
  if (fds.count < least) return vhostUserViolation("fds-missing", `${name} came with ${fds.count} of ${least}`);
  if (fds.count > most) return vhostUserViolation("fds-surplus", `${name} came with ${fds.count}, not ${most}`);
  const why = row.when?.(session) ?? null;
  return why === null ? null : vhostUserViolation("state", `${name} came, and ${why}`);
}

/**
 * "VHOST_USER_PROTOCOL_F_REPLY_ACK": a message without a reply of its own is acknowledged when the front-end asks for
 * it, with 0 or not. Where a refusal cannot be told, the connection ends, so that nobody takes it for done.
 */
function answer(session: Session, raw: RawMessage, replies: boolean, outcome: Outcome): Answer {
  if (outcome !== null && "payload" in outcome) {
    const message = encodeMessage(raw.request, FLAG_REPLY, outcome.payload);
    return { message, fds: outcome.fds ?? [], fatal: null, refused: false };
  }
  if (outcome !== null) session.refused(outcome);
  const refused = outcome !== null;
  const acknowledged = !replies && (raw.flags & FLAG_NEED_REPLY) !== 0 && session.negotiated("REPLY_ACK");
  if (acknowledged) {
    return {
      message: encodeMessage(raw.request, FLAG_REPLY, encodeU64(refused ? 1 : 0)),
      fds: [],
      fatal: null,
      refused,
    };
  }
  return outcome === null ? NOTHING : { message: null, fds: [], fatal: outcome, refused };
}
