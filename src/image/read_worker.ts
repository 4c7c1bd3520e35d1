/**
 * Reads an image on a thread of its own: the first message says which image, each further one what to read.
 *
 * @module
 */

import { SegmentList } from "../memory/segment_list.ts";
import type { Image } from "./image.ts";
import { openImage } from "./open.ts";

/** Opens an image. */
export interface OpenMessage {
  readonly name: string;
  readonly format: string;
}

/** Reads a range into the start of a buffer. */
export interface ReadMessage {
  readonly offset: number;
  readonly lengthBytes: number;
  readonly buffer: ArrayBuffer;
}

/** The buffer comes back, full or not. */
export interface ReadResult {
  readonly buffer: ArrayBuffer;
  readonly isGood: boolean;
}

/** The part of a worker's global scope that is used. */
interface WorkerScope {
  onmessage: ((event: MessageEvent<OpenMessage | ReadMessage>) => void) | null;
  postMessage(message: unknown, transfer?: Transferable[]): void;
}

const scope = globalThis as unknown as WorkerScope;
let image: Image | null = null;

scope.onmessage = async ({ data: message }) => {
  if ("name" in message) {
    const { name, format } = message;
    try {
      // Whoever asks has the image open, and its lock.
      image = await openImage(name, { format, readOnly: true, share: true });
      scope.postMessage(true);
    } catch {
      scope.postMessage(false);
    }
    return;
  }
  const { offset, lengthBytes, buffer } = message;
  let isGood = true;
  try {
    await image!.read(offset, SegmentList.over(new Uint8Array(buffer, 0, lengthBytes)));
  } catch {
    isGood = false;
  }
  const result: ReadResult = { buffer, isGood };
  scope.postMessage(result, [buffer]);
};
