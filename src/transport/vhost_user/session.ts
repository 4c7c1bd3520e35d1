/**
 * The state of one vhost-user connection: what was negotiated, the memory, the rings, the log and the area for buffers
 * in flight. The messages (`messages.ts`) act on it.
 *
 * @module
 */

import type { TraceSink } from "../../trace/events.ts";
import type { Device } from "../../virtio/device.ts";
import {
  featureNames,
  featureSet,
  hasFeature,
  VIRTIO_F_NOTIF_CONFIG_DATA,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_RING_RESET,
} from "../../virtio/features.ts";
import { VIRTIO_CONFIG_S_NEEDS_RESET } from "../../virtio/status_layout.ts";
import type { Violation } from "../../virtio/violation.ts";
import type { DirtyLog } from "./dirty_log.ts";
import type { ConfigWrite, InflightArea } from "./inflight_area.ts";
import { MemoryTable } from "./memory_table.ts";
import { after, type BackendChannel, type Completion, type Notifier, type VhostUserHost } from "./seams.ts";
import {
  encodeMessage,
  PROTOCOL_F,
  type ProtocolFeature,
  VHOST_F_LOG_ALL,
  VHOST_USER_BACKEND_CONFIG_CHANGE_MSG,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VRING_INDEX_MASK,
} from "./vhost_user_layout.ts";
import { Vring } from "./vring.ts";
import type { VringContext } from "./vring_context.ts";

/**
 * Features of a device that this transport has no message for: an eventfd carries no data, and one queue alone cannot
 * be reset.
 */
const UNSUPPORTED = featureSet(VIRTIO_F_NOTIFICATION_DATA, VIRTIO_F_NOTIF_CONFIG_DATA, VIRTIO_F_RING_RESET);

/** Features that vhost-user adds to those of the device. */
const ADDED = featureSet(VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES);

/** Names of the features that vhost-user adds. */
export const ADDED_FEATURE_NAMES: Readonly<Record<number, string>> = {
  [VHOST_F_LOG_ALL]: "LOG_ALL",
  [VHOST_USER_F_PROTOCOL_FEATURES]: "PROTOCOL_FEATURES",
};

/** The protocol features on offer. */
export const OFFERED_PROTOCOL_FEATURES: bigint = featureSet(
  PROTOCOL_F.MQ,
  PROTOCOL_F.LOG_SHMFD,
  PROTOCOL_F.REPLY_ACK,
  PROTOCOL_F.BACKEND_REQ,
  PROTOCOL_F.CONFIG,
  PROTOCOL_F.INFLIGHT_SHMFD,
  PROTOCOL_F.RESET_DEVICE,
  PROTOCOL_F.CONFIGURE_MEM_SLOTS,
  PROTOCOL_F.STATUS,
);

/** Who wants to know what a session does. */
export interface SessionObservers {
  /** Takes the start of queues and the end of negotiations. */
  trace?: TraceSink;
  /** Takes what the front-end or its driver was refused, whether the connection lives on or not. */
  refused?: (violation: Violation) => void;
  /** Is told, once a connection, that a driver kicks a new ring again and again in which nothing is to be seen. */
  kickedInVain?: (ring: number) => void;
}

/** One connection's state. */
export class Session implements VringContext {
  readonly device: Device;
  readonly host: VhostUserHost;
  readonly table: MemoryTable;
  readonly rings: readonly Vring[];
  readonly observers: SessionObservers;
  /** Features on offer, with those that vhost-user adds. */
  readonly offered: bigint;
  /** What SET_FEATURES said last; `null` before. */
  features: bigint | null = null;
  deviceFeatures: bigint | null = null;
  /** VHOST_USER_F_PROTOCOL_FEATURES was negotiated. No feature of the device, so no reset takes it away. */
  extended = false;
  protocolFeatures = 0n;
  /** The device status, as far as the front-end says; 0 without the STATUS feature. */
  status = 0;
  log: DirtyLog | null = null;
  logNotifier: Notifier | null = null;
  inflight: InflightArea | null = null;
  /** The driver's last write to the configuration space: the front-end keeps it over a reset, and believes it. */
  configWrite: ConfigWrite | null = null;
  #channel: BackendChannel | null = null;
  /** The configuration changed while nothing may be sent. */
  #configChangePending = false;
  #toldOfKicks = false;
  /** Rings of this device are running that others have. */
  #othersRunning = false;

  constructor(device: Device, host: VhostUserHost, observers: SessionObservers) {
    this.device = device;
    this.host = host;
    this.observers = observers;
    this.table = new MemoryTable(host);
    this.offered = (device.features & ~UNSUPPORTED) | ADDED;
    // SET_VRING_KICK and its like have eight bits for the number of a queue.
    const count = Math.min(device.queueSizes(this.offered).length, VRING_INDEX_MASK + 1);
    this.rings = Array.from({ length: count }, (_, index) => new Vring(index, this));
  }

  /** Whether a protocol feature was negotiated. */
  negotiated(feature: ProtocolFeature): boolean {
    return hasFeature(this.protocolFeatures, PROTOCOL_F[feature]);
  }

  /** Whether any ring is started; if not, the device is suspended ("Suspended device state"). */
  get anyRunning(): boolean {
    return this.#othersRunning || this.rings.some((ring) => ring.running);
  }

  /** Says whether any ring is started that another session has, of the same device and front-end. */
  setOthersRunning(running: boolean): void {
    this.#othersRunning = running;
    if (running && this.#configChangePending) this.configChanged();
  }

  get activeLog(): DirtyLog | null {
    return hasFeature(this.features ?? 0n, VHOST_F_LOG_ALL) ? this.log : null;
  }

  /** Whether features mean others for the device than those that it has. */
  changesDevice(features: bigint): boolean {
    return (features & ~ADDED) !== this.deviceFeatures;
  }

  /** Takes what SET_FEATURES said, once it was found good. */
  accept(features: bigint): void {
    const fresh = this.changesDevice(features);
    this.features = features;
    this.extended = hasFeature(features, VHOST_USER_F_PROTOCOL_FEATURES);
    // A front-end says the same again when it only wants to start or stop the log, and each time a guest boots. For the
    // device that would be a new driver.
    if (fresh) {
      this.deviceFeatures = features & ~ADDED;
      this.device.negotiated(this.deviceFeatures);
      this.repeatConfigWrite();
      const accepted = featureNames(this.deviceFeatures, this.device.featureNames);
      this.observers.trace?.({ event: "features", accepted });
    }
    this.updateRecords();
  }

  /** Writes once more what the driver wrote last: what the device keeps of it ends with a reset, what it means does not. */
  repeatConfigWrite(): void {
    if (this.configWrite === null || this.deviceFeatures === null) return;
    this.device.writeConfig(this.configWrite.offset, this.configWrite.bytes);
  }

  /** Says anew to all running rings who keeps their records. */
  updateRecords(): void {
    for (const ring of this.rings) ring.updateRecord();
  }

  inflightRegion(index: number, size: number): ReturnType<VringContext["inflightRegion"]> {
    return this.inflight === null ? null : this.inflight.regionOf(index, size);
  }

  started(...[index, queue, config]: Parameters<VringContext["started"]>): void {
    const { descAddress, driverAddress, deviceAddress, size } = config;
    const { layout } = queue;
    this.observers.trace?.({ event: "queue", queue: index, layout, size, descAddress, driverAddress, deviceAddress });
    if (this.#configChangePending) this.configChanged();
  }

  kickedInVain(index: number): void {
    if (!this.#toldOfKicks) this.observers.kickedInVain?.(index);
    this.#toldOfKicks = true;
  }

  refused(violation: Violation): void {
    this.observers.refused?.(violation);
  }

  /** SET_BACKEND_REQ_FD: replaces the channel. */
  setChannel(channel: BackendChannel): void {
    this.#channel?.close();
    this.#channel = channel;
  }

  /** The configuration space changed: the front-end is told, as soon as the device is not suspended. */
  configChanged(): void {
    if (this.#channel === null || !this.negotiated("CONFIG")) return;
    this.#configChangePending = !this.anyRunning;
    if (this.#configChangePending) return;
    this.#channel.send(encodeMessage(VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, 0, new Uint8Array(0)));
  }

  /** The driver broke a ring: its err descriptor tells. */
  needsReset(violation: Violation): void {
    this.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
    for (const ring of this.rings) if (ring.violation !== null) ring.err();
    this.refused(violation);
  }

  /** Stops all rings, with nothing in flight, does `change`, and goes on. */
  withRingsAtRest(change: () => void): Completion {
    const running = this.rings.filter((ring) => ring.running);
    let rested: Completion = undefined;
    for (const ring of running) {
      const suspended = ring.suspend();
      rested = after(rested, () => suspended);
    }
    return after(rested, () => {
      change();
      for (const ring of running) {
        const refused = ring.start();
        if (refused === null) continue;
        ring.err();
        this.refused(refused);
      }
    });
  }

  /** Stops all rings for good; ends when nothing is in flight, and then each `base` tells where its ring stands. */
  stopRings(): Completion {
    let stopped: Completion = undefined;
    for (const ring of this.rings) {
      const one = ring.stop();
      stopped = after(stopped, () => one);
    }
    return stopped;
  }

  /**
   * Resets the device; ends when nothing is in flight.
   *
   * @param forget whether buffers in flight are gone for good: not when a front-end may come back for them
   */
  resetDevice(forget: boolean): Completion {
    const done = this.device.reset();
    for (const ring of this.rings) ring.abandon(forget);
    this.deviceFeatures = null;
    this.features = null;
    this.status = 0;
    return done;
  }

  /** Ends the session: ends when nothing is in flight and everything was given back. */
  close(): Completion {
    return after(this.resetDevice(false), () => {
      for (const ring of this.rings) ring.clear();
      this.#channel?.close();
      this.logNotifier?.close();
      this.log?.close();
      this.inflight?.close();
      this.#channel =
        this.logNotifier =
        this.log =
        this.inflight =
          null;
      this.table.clear();
    });
  }
}
