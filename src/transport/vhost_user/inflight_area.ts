/**
 * The shared buffer that outlives the back-end: made on GET_INFLIGHT_FD, used from SET_INFLIGHT_FD on ("Inflight I/O
 * tracking").
 *
 * @module
 */

import type { Violation } from "../../virtio/violation.ts";
import {
  CONFIG_NOTE,
  CONFIG_NOTE_MAGIC,
  inflightAreaBytes,
  QueueRegion,
  queueRegionBytes,
  roomyQueueSize,
} from "./inflight_layout.ts";
import { messageOf } from "./memory_table.ts";
import { vhostUserViolation } from "./rules.ts";
import type { MappedBytes, VhostUserHost } from "./seams.ts";
import type { InflightDescription } from "./vhost_user_layout.ts";

/** The largest ring there can be (VIRTIO 1.4 §2.7). */
const QUEUE_MAX_SIZE = 32768;

/** A write of the driver to the configuration space. */
export interface ConfigWrite {
  readonly offset: number;
  readonly bytes: Uint8Array;
}

/** Checks for how many queues of which size an area is meant. */
export function checkInflight({ queues, queueSize }: InflightDescription, queueCount: number): Violation | null {
  if (queues >= 1 && queues <= queueCount && queueSize >= 1 && queueSize <= QUEUE_MAX_SIZE) return null;
  return vhostUserViolation("inflight-range", `an area for ${queues} queues of ${queueSize}; there are ${queueCount}`);
}

/** A mapped area. */
export class InflightArea {
  readonly #mapping: MappedBytes;
  readonly #queues: number;
  readonly #queueSize: number;

  private constructor(mapping: MappedBytes, queues: number, queueSize: number) {
    this.#mapping = mapping;
    this.#queues = queues;
    this.#queueSize = queueSize;
  }

  /** Maps the area that a front-end sent. */
  static map(host: VhostUserHost, fd: number, description: InflightDescription): InflightArea | Violation {
    const { mmapSizeBytes, mmapOffset, queues } = description;
    // Only its size tells an area that was made here from one that has just what the front-end asked for.
    const roomy = roomyQueueSize(description.queueSize);
    const queueSize = mmapSizeBytes < inflightAreaBytes(queues, roomy) ? description.queueSize : roomy;
    const needed = inflightAreaBytes(queues, queueSize);
    if (mmapSizeBytes < needed || mmapOffset % 8 !== 0 || !Number.isSafeInteger(mmapOffset + needed)) {
      const found = `${mmapSizeBytes} bytes at offset ${mmapOffset}, ${needed} are needed at a multiple of 8`;
      return vhostUserViolation("inflight-range", found);
    }
    try {
      return new InflightArea(host.map(fd, mmapOffset, needed), queues, queueSize);
    } catch (error) {
      return vhostUserViolation("inflight-map", messageOf(error));
    }
  }

  /** The region of a ring, or why it has none. */
  regionOf(index: number, size: number): QueueRegion | Violation {
    if (index < this.#queues && size <= this.#queueSize) {
      return new QueueRegion(this.#mapping.bytes, index, this.#queueSize);
    }
    const found = `ring ${index} of ${size} descriptors in an area for ${this.#queues} of ${this.#queueSize}`;
    return vhostUserViolation("inflight-range", found);
  }

  /** The last write to the configuration space that a back-end noted here, or `null`. */
  get configWrite(): ConfigWrite | null {
    const view = this.#note;
    const length = view.getUint16(CONFIG_NOTE.length, true);
    if (view.getUint32(CONFIG_NOTE.magic, true) !== CONFIG_NOTE_MAGIC) return null;
    if (length > CONFIG_NOTE.bytes - CONFIG_NOTE.data) return null;
    const bytes = Uint8Array.from({ length }, (_, i) => view.getUint8(CONFIG_NOTE.data + i));
    return { offset: view.getUint16(CONFIG_NOTE.offset, true), bytes };
  }

  /** Notes a write; what is longer than the place for it is left out. */
  noteConfigWrite({ offset, bytes }: ConfigWrite): void {
    if (bytes.byteLength > CONFIG_NOTE.bytes - CONFIG_NOTE.data) return;
    // Of several threads that share the area each notes what all of them are told.
    const noted = this.configWrite;
    if (noted?.offset === offset && String(noted.bytes) === String(bytes)) return;
    const view = this.#note;
    view.setUint32(CONFIG_NOTE.magic, 0, true);
    view.setUint16(CONFIG_NOTE.offset, offset, true);
    view.setUint16(CONFIG_NOTE.length, bytes.byteLength, true);
    bytes.forEach((byte, i) => view.setUint8(CONFIG_NOTE.data + i, byte));
    view.setUint32(CONFIG_NOTE.magic, CONFIG_NOTE_MAGIC, true);
  }

  /** Gives the memory back; what is in the area stays. */
  close(): void {
    this.#mapping.unmap();
  }

  get #note(): DataView {
    const { bytes } = this.#mapping;
    const at = this.#queues * queueRegionBytes(this.#queueSize);
    return new DataView(bytes.buffer, bytes.byteOffset + at, CONFIG_NOTE.bytes);
  }
}
