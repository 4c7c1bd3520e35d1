/** What the tests of the vhost-user back-end share: a block device on a disk in memory that may fail or wait. */

import { BlkDevice } from "../../../src/blk/device.ts";
import type { BlkOptions } from "../../../src/blk/options.ts";
import { RawImage } from "../../../src/image/raw/raw_image.ts";
import { SegmentList } from "../../../src/memory/segment_list.ts";
import { FaultStorage } from "../../../src/storage/fault.ts";
import { MemoryStorage } from "../../../src/storage/memory.ts";
import { VhostUserBackEnd } from "../../../src/transport/vhost_user/back_end.ts";
import { OFFERED_PROTOCOL_FEATURES } from "../../../src/transport/vhost_user/session.ts";
import type { Violation } from "../../../src/virtio/violation.ts";
import { Random } from "../../random.ts";
import { FakeHost } from "./fake_host.ts";
import { FrontEnd } from "./front_end.ts";

export const DISK_BYTES = 256 * 512;
/** All protocol features. */
export const ALL = OFFERED_PROTOCOL_FEATURES;

/** A back-end with its disk. */
export class Rig {
  readonly host: FakeHost;
  readonly memory: MemoryStorage;
  readonly storage: FaultStorage;
  readonly device: BlkDevice;
  readonly backEnd: VhostUserBackEnd;
  readonly refusals: Violation[] = [];

  constructor(device: Partial<BlkOptions> = {}, memory?: MemoryStorage, host = new FakeHost()) {
    this.host = host;
    this.memory = memory ?? filledDisk();
    this.storage = new FaultStorage(this.memory);
    this.device = new BlkDevice(new RawImage(this.storage), { packed: true, ...device });
    const refused = (violation: Violation) => void this.refusals.push(violation);
    this.backEnd = new VhostUserBackEnd(this.device, this.host, { refused });
  }

  /** Just the device, for somebody else to drive. */
  static deviceAlone(): BlkDevice {
    return new BlkDevice(new RawImage(filledDisk()), { packed: true });
  }

  connect(): FrontEnd {
    return new FrontEnd(this.backEnd, this.host);
  }

  /** The names of the rules that were broken since the last time. */
  rules(): string[] {
    return this.refusals.splice(0).map(({ rule }) => rule);
  }

  disk(offset = 0, lengthBytes = DISK_BYTES): Uint8Array {
    const bytes = new Uint8Array(lengthBytes);
    this.memory.read(offset, SegmentList.over(bytes));
    return bytes;
  }
}

export function diskBytes(): Uint8Array<ArrayBuffer> {
  return new Random(1).bytes(DISK_BYTES);
}

export function filledDisk(): MemoryStorage {
  const memory = new MemoryStorage(DISK_BYTES);
  memory.write(0, SegmentList.over(diskBytes()));
  return memory;
}

/** Lets everything happen that is ready to. */
export function turn(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}
