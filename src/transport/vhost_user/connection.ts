/**
 * A connection of a front-end, without the socket: takes bytes and file descriptors as they come, cut anywhere, and
 * hands back what is to be sent ("Message Specification", "Communication").
 *
 * Messages are carried out one after the other; one that waits for requests in flight holds up those behind it.
 *
 * @module
 */

import type { Violation } from "../../virtio/violation.ts";
import type { Answer, RawMessage } from "./dispatch.ts";
import type { MessageHandler } from "./message_handler.ts";
import { MAX_FDS_PER_MESSAGE } from "./messages.ts";
import { vhostUserViolation } from "./rules.ts";
import { MessageFds } from "./seams.ts";
import { FLAG_REPLY, HEADER_BYTES, PAYLOAD_MAX_BYTES, VERSION_MASK, VHOST_USER_VERSION } from "./vhost_user_layout.ts";

/** Sends a message; takes the descriptors over and closes them when they are sent. */
export type Send = (message: Uint8Array, fds: readonly number[]) => void;

/** Why a connection ended: the front-end's doing, or ours. */
export type EndReason =
  | { readonly kind: "disconnected" }
  | { readonly kind: "stopped" }
  | { readonly kind: "refused"; readonly violation: Violation };

/** One connection. */
export class VhostUserConnection {
  /** Ends when nothing of the session is left: nothing in flight, nothing mapped, no descriptor open. */
  readonly closed: Promise<EndReason>;
  /** Called when `wantedBytes` rises from 0: whoever reads the socket may go on. */
  onReady: () => void = () => {};

  readonly #handler: MessageHandler;
  readonly #send: Send;
  #settle!: (reason: EndReason) => void;
  #fail!: (error: unknown) => void;
  readonly #header = new Uint8Array(HEADER_BYTES);
  readonly #headerView = new DataView(this.#header.buffer);
  #payload: Uint8Array = new Uint8Array(0);
  /** Bytes of the current message that have come. */
  #have = 0;
  /** Bytes of it that there will be, once its header is there. */
  #need = HEADER_BYTES;
  #fds: MessageFds | null = null;
  /** A message is being carried out. */
  #busy: Promise<void> | null = null;
  #ended: EndReason | null = null;

  constructor(handler: MessageHandler, send: Send) {
    this.#handler = handler;
    this.#send = send;
    this.closed = new Promise((settle, fail) => {
      this.#settle = settle;
      this.#fail = fail;
    });
  }

  /** Why it ended, or is about to; `null` while it lives. */
  get endReason(): EndReason | null {
    return this.#ended;
  }

  /**
   * How many bytes to read next, at most: what is left of a header or of a payload, so that descriptors are never
   * received with the bytes of another message. 0 while a message is carried out, and after the end.
   */
  get wantedBytes(): number {
    if (this.#busy !== null || this.#ended !== null) return 0;
    return this.#need - this.#have;
  }

  /**
   * Takes what was read: up to `wantedBytes` bytes, and the descriptors that came with them, which are taken over.
   *
   * @throws RangeError when there are more bytes than were wanted
   */
  receive(bytes: Uint8Array, fds: readonly number[] = []): void {
    if (bytes.byteLength > this.wantedBytes && this.#ended === null) {
      for (const fd of fds) this.#handler.host.closeFd(fd);
      throw new RangeError(`${bytes.byteLength} bytes were read where ${this.wantedBytes} are wanted`);
    }
    if (fds.length > 0 && !this.#keep(fds)) return;
    if (this.#ended !== null || bytes.byteLength === 0) return;
    if (this.#have < HEADER_BYTES) this.#header.set(bytes, this.#have);
    else this.#payload.set(bytes, this.#have - HEADER_BYTES);
    this.#have += bytes.byteLength;
    if (this.#have === HEADER_BYTES && !this.#readHeader()) return;
    if (this.#have === this.#need && this.#have >= HEADER_BYTES) this.#message();
  }

  /** The front-end closed its end, or is gone. */
  disconnected(): void {
    if (this.#have > 0 && this.#ended === null) {
      const found = `the connection ended after ${this.#have} of ${this.#need} bytes`;
      this.#handler.refused(vhostUserViolation("message-cut", found));
    }
    this.#end({ kind: "disconnected" });
  }

  /** Ends the connection from this side. What is in flight ends first. */
  stop(): void {
    this.#end({ kind: "stopped" });
  }

  /** Keeps the descriptors of the message that starts; `false` when they come at no such place. */
  #keep(fds: readonly number[]): boolean {
    const rule = this.#ended !== null || this.#have > 0
      ? "fds-late"
      : fds.length > MAX_FDS_PER_MESSAGE
      ? "fds-surplus"
      : null;
    if (rule === null) {
      this.#fds = new MessageFds(fds);
      return true;
    }
    for (const fd of fds) this.#handler.host.closeFd(fd);
    this.#refuse(vhostUserViolation(rule, `${fds.length} came after ${this.#have} bytes of a message`));
    return false;
  }

  #readHeader(): boolean {
    const flags = this.#headerView.getUint32(4, true);
    const size = this.#headerView.getUint32(8, true);
    const violation = (flags & VERSION_MASK) !== VHOST_USER_VERSION
      ? vhostUserViolation("header-version", `the flags are 0x${flags.toString(16)}`)
      : (flags & FLAG_REPLY) !== 0
      ? vhostUserViolation("header-reply", `the flags are 0x${flags.toString(16)}`)
      : size > PAYLOAD_MAX_BYTES
      ? vhostUserViolation("payload-length", `${size} bytes are announced, ${PAYLOAD_MAX_BYTES} at most`)
      : null;
    if (violation !== null) {
      this.#refuse(violation);
      return false;
    }
    this.#payload = new Uint8Array(size);
    this.#need = HEADER_BYTES + size;
    return true;
  }

  #message(): void {
    const raw: RawMessage = {
      request: this.#headerView.getUint32(0, true),
      flags: this.#headerView.getUint32(4, true),
      payload: this.#payload,
      fds: this.#fds ?? new MessageFds([]),
    };
    this.#fds = null;
    this.#have = 0;
    this.#need = HEADER_BYTES;
    const answer = this.#handler.handle(raw);
    if (!(answer instanceof Promise)) return this.#done(raw, answer);
    this.#busy = answer.then((later) => {
      this.#busy = null;
      this.#done(raw, later);
      if (this.#ended === null) this.onReady();
    });
    // What is thrown here is a bug of ours: whoever waits for the end hears of it.
    this.#busy.catch((error) => this.#fail(error));
  }

  #done(raw: RawMessage, answer: Answer): void {
    raw.fds.close(this.#handler.host);
    if (this.#ended !== null) {
      for (const fd of answer.fds) this.#handler.host.closeFd(fd);
      return;
    }
    if (answer.message !== null) this.#send(answer.message, answer.fds);
    if (answer.fatal !== null) this.#refuse(answer.fatal, false);
  }

  #refuse(violation: Violation, report = true): void {
    if (report) this.#handler.refused(violation);
    this.#end({ kind: "refused", violation });
  }

  #end(reason: EndReason): void {
    if (this.#ended !== null) return;
    this.#ended = reason;
    this.#fds?.close(this.#handler.host);
    this.#fds = null;
    const finish = async () => {
      // A message that waits for requests in flight still holds what the session gives back.
      await this.#busy?.catch(() => {});
      await this.#handler.close();
      return reason;
    };
    finish().then(this.#settle, this.#fail);
  }
}
