/**
 * A thread that has some of the queues: a back-end of its own, on the same file, whose front-end is the first thread.
 *
 * @module
 */

import { BlkDevice } from "../blk/device.ts";
import { UringEngine } from "../storage/uring_engine.ts";
import { VhostUserBackEnd } from "../transport/vhost_user/back_end.ts";
import { ControlRefusal, ControlSocket } from "./control_socket.ts";
import { Crash } from "./crash.ts";
import { HandedOver } from "./handed_over.ts";
import { Loop } from "./loop.ts";
import { Observers, type Tell } from "./observers.ts";
import { Pace } from "./pace.ts";
import { ServedImage } from "./served_image.ts";
import type { QueueThreadStart, ThreadNews } from "./thread_start.ts";
import { UringHost } from "./uring_host.ts";
import { VhostUserServer } from "./vhost_user_server.ts";
import { Watches } from "./watches.ts";

/** Serves to the end, which comes when the first thread hands over nothing more. */
export async function serveQueues(
  start: QueueThreadStart,
  tell: Tell,
  post: (news: ThreadNews) => void,
): Promise<void> {
  let stop = () => {};
  const sessions = new HandedOver(start.ends.sessions, () => stop());
  const callers = new HandedOver(start.ends.commands);
  try {
    const observers = await Observers.create(start.observe, tell);
    using engine = new UringEngine({ drivenBy: "owner", entries: 512 });
    const loop = new Loop(engine, start.pollNanoseconds);
    const served = await loop.until(ServedImage.open(start, engine, null));
    try {
      served.checkIdentity(start.identity);
      await serveImage(start, engine, loop, served, observers, sessions, callers, (set) => stop = set, post);
    } finally {
      // The first thread flushes the file, when no thread has anything in flight.
      await loop.until(served.close({ flush: false }));
    }
  } finally {
    // Whoever waits at the other end learns of it, however it came.
    sessions.close();
    callers.close();
  }
}

async function serveImage(
  start: QueueThreadStart,
  engine: UringEngine,
  loop: Loop,
  { image, identity }: ServedImage,
  observers: Observers,
  sessions: HandedOver,
  callers: HandedOver,
  onStop: (stop: () => void) => void,
  post: (news: ThreadNews) => void,
): Promise<void> {
  const crash = new Crash();
  const device = new BlkDevice(image, start.device, { ...observers.device, crashed: crash.note });
  const pace = new Pace(device);
  const watches = new Watches(engine);
  const host = new UringHost(engine, watches);
  const backEnd = new VhostUserBackEnd(device, host, observers.session, "first");
  let stopping: Promise<void> | null = null;
  onStop(() => {
    stopping ??= server.stop();
  });
  const server = new VhostUserServer(sessions, backEnd, host, watches, {
    // Front-ends are counted by the first thread.
    connected: () => {},
    ended: (reason) => {
      if (reason.kind === "refused") observers.disconnected(reason);
    },
    crashed: crash.note,
  });
  const refresh = () => observers.refresh(device, image, host.kickCount);
  const commands = new ControlSocket(callers, watches, {
    resize: async ({ size }) => {
      if (typeof size !== "number") throw new ControlRefusal("resize needs a size");
      await device.resize(size);
      return {};
    },
    refresh: () => {
      refresh();
      return {};
    },
    drain: async () => {
      await backEnd.drain();
      return {};
    },
  });
  try {
    post({ news: "ready", sizeBytes: image.sizeBytes, format: image.format, identity, ends: [] });
    await loop.run({
      isOver: () => stopping !== null || crash.happened,
      isBusy: () => device.inFlightCount > 0 || server.busy || commands.busy,
      inFlight: () => device.inFlightCount,
      look: () => device.poll(),
      endLooking: () => device.endPolling(),
      turned: () => pace.turned(),
      mustPoll: () => host.polls,
      poll: () => host.pollRings(),
    });
    await loop.until(crash.unless(stopping));
    refresh();
  } finally {
    // The first thread waits for what it has asked, and for the end.
    server.abandon();
    commands.close();
  }
}
