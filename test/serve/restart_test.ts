/**
 * `vblk serve` killed with SIGKILL under full load and started again, the guest none the wiser: the front-end connects
 * once more with the area for requests in flight. Nothing is lost and nothing old comes back.
 */

import { assert, assertEquals } from "@std/assert";
import { Mapping } from "../../src/host/mapping.ts";
import {
  QueueRegion,
  roomyQueueSize,
  SPLIT_REGION,
  SPLIT_STATE,
} from "../../src/transport/vhost_user/inflight_layout.ts";
import { Random } from "../random.ts";
import { requires } from "../requires.ts";
import { Folder, run, tryRun } from "../storage/support.ts";
import { type Layout, LAYOUTS } from "../transport/vhost_user/front_end.ts";
import { type Answer, FrontEnd, Guest, OK, requiresServe, ServeProcess, TYPE } from "./rig.ts";

const BLOCK_BYTES = 4096;
const BLOCKS = 2048;
/** A load without flushes, on a disk where most writes allocate: only the journal has the tables. */
const NEVER = 1_000_000;

/** A load that knows what every block of the disk must hold: one request at a time for each block. */
class Load {
  readonly guest: Guest;
  readonly random: Random;
  /** By block: the stamp of the last write that ended. */
  readonly stamps = new Uint32Array(BLOCKS);
  ended = 0;
  readonly #busy = new Uint8Array(BLOCKS);
  readonly #inFlight: ({ type: number; block: number; stamp: number } | null)[] = [];
  #nextStamp = 1;

  readonly #flushOneIn: number;

  constructor(guest: Guest, random: Random, flushOneIn: number) {
    this.guest = guest;
    this.random = random;
    this.#flushOneIn = flushOneIn;
  }

  /** Fills the rings. */
  fill(): void {
    const { guest, random } = this;
    const wanted = new Set<number>();
    for (let slot; (slot = guest.free.pop()) !== undefined;) {
      const block = this.#pickBlock();
      const queue = block % guest.queues.length;
      const type = random.oneIn(this.#flushOneIn) ? TYPE.flush : random.oneIn(3) ? TYPE.read : TYPE.write;
      const stamp = this.#nextStamp++;
      this.#busy[block] = 1;
      this.#inFlight[slot] = { type, block, stamp };
      const words = new Uint32Array(guest.data(slot).slice().buffer);
      words.fill(type === TYPE.write ? stamp : 0xdddd_dddd);
      guest.data(slot).set(new Uint8Array(words.buffer));
      if (guest.submit(slot, type, block * BLOCK_BYTES, type === TYPE.flush ? 0 : BLOCK_BYTES, queue)) {
        wanted.add(queue);
      }
    }
    for (const queue of wanted) guest.kick(queue);
  }

  take(answers: readonly Answer[]): void {
    for (const { slot, status } of answers) {
      const request = this.#inFlight[slot];
      assert(request !== null, `slot ${slot} came back twice`);
      const { type, block, stamp } = request;
      assertEquals(status, OK, `a request of type ${type} for block ${block} failed`);
      this.#inFlight[slot] = null;
      this.#busy[block] = 0;
      this.ended++;
      if (type === TYPE.write) this.stamps[block] = stamp;
      if (type === TYPE.read) this.#holds(this.guest.data(slot), block, "read");
      this.guest.free.push(slot);
    }
  }

  /** Takes what has come back in any ring; waits a little when nothing has. */
  turn(): void {
    const { guest } = this;
    let any = false;
    guest.queues.forEach((driver, queue) => {
      const answers = guest.collect(queue);
      any ||= answers.length > 0;
      this.take(answers);
      driver.enableInterrupts();
    });
    if (!any && guest.calls[0].wait(1)) guest.calls[0].drain();
  }

  /** Looks at the whole disk. */
  verify(disk: Uint8Array): void {
    for (let block = 0; block < BLOCKS; block++) {
      this.#holds(disk.subarray(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES), block, "image");
    }
  }

  #pickBlock(): number {
    for (;;) {
      // Some blocks are written again and again: an old write that was carried out once more would show there.
      const block = this.random.oneIn(2) ? this.random.below(100) : this.random.below(BLOCKS);
      if (this.#busy[block] === 0) return block;
    }
  }

  #holds(bytes: Uint8Array, block: number, where: string): void {
    const words = new Uint32Array(bytes.slice().buffer);
    const other = words.find((word) => word !== this.stamps[block]);
    assert(other === undefined, `${where}: block ${block} holds ${other}, and ${this.stamps[block]} was written last`);
  }
}

interface Case {
  readonly name: string;
  readonly format: "raw" | "qcow2";
  /** One request in so many is a flush. Default: 20. */
  readonly flushOneIn?: number;
  /** Requests between two kills. Default: 3000 and more. */
  readonly requests?: number;
  /** I/O threads; there are twice as many queues. Default: 1. */
  readonly threads?: number;
  /** Makes the image. */
  make(path: string): void;
}

const CASES: readonly Case[] = [
  { name: "raw", format: "raw", make: (path) => run("qemu-img", "create", "-q", "-f", "raw", path, "8M") },
  {
    name: "raw, two I/O threads",
    format: "raw",
    threads: 2,
    make: (path) => run("qemu-img", "create", "-q", "-f", "raw", path, "8M"),
  },
  {
    name: "qcow2, allocated",
    format: "qcow2",
    make: (path) => {
      run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=full", path, "8M");
    },
  },
  {
    name: "qcow2, empty at first",
    format: "qcow2",
    make: (path) => run("qemu-img", "create", "-q", "-f", "qcow2", path, "8M"),
  },
  {
    name: "qcow2 with small clusters, empty at first, never flushed",
    format: "qcow2",
    flushOneIn: NEVER,
    requests: 300,
    make: (path) => run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, "8M"),
  },
];

const KILLS = 4;

for (const { name, format, make, flushOneIn = 20, requests = 3000, threads = 1 } of CASES) {
  for (const layout of LAYOUTS) {
    Deno.test({
      name: `${name}, ${layout} rings: killed ${KILLS} times under load, nothing is lost and nothing old comes back`,
      ...requires("qemu-img"),
      fn: () => survive(layout, format, make, flushOneIn, requests, threads),
    });
  }
}

async function survive(
  layout: Layout,
  format: string,
  make: (path: string) => void,
  flushOneIn: number,
  requests: number,
  threads: number,
): Promise<void> {
  const seed = Number(Deno.env.get("VBLK_SEED") ?? 1);
  using folder = new Folder();
  const [image, socket] = [folder.file("disk"), folder.file("vm.sock")];
  make(image);
  using guest = new Guest({ layout, queues: 2 * threads, size: 128, slots: 96 });
  const load = new Load(guest, new Random(seed), flushOneIn);
  const device = `num-queues=${guest.queues.length},packed=on`;
  const args = [image, "-f", format, "--iothreads", `${threads}`, "--device", device, "--vhost-user", socket];
  const replayed: number[] = [];
  try {
    for (let life = 0; life <= KILLS; life++) {
      await using process = await ServeProcess.ready(args);
      using front = new FrontEnd(socket);
      guest.start(front);
      for (let queue = 0; queue < guest.queues.length; queue++) guest.kick(queue);
      const until = load.ended + requests + load.random.below(requests);
      const end = performance.now() + 10_000;
      while (load.ended < until) {
        load.fill();
        load.turn();
        assert(performance.now() < end, `${load.ended} requests ended, ${guest.inFlight} are still out`);
      }
      if (life < KILLS) {
        load.fill();
        process.signal("SIGKILL");
        // Whatever it does until it is gone, it does while the driver adds requests and takes results.
        for (let i = load.random.below(200); i > 0; i--) {
          load.turn();
          load.fill();
        }
        await process.end();
        replayed.push(guest.inFlight);
        continue;
      }
      while (guest.inFlight > 0) {
        load.turn();
        assert(performance.now() < end, `${guest.inFlight} requests never came back`);
      }
      const { code, stderr } = await process.stop();
      assertEquals([code, stderr], [0, ""]);
    }
    // A daemon that was killed while it had nothing to do proves nothing.
    assert(replayed.some((count) => count > 0), "nothing was in flight at any kill");
    if (format === "qcow2") {
      const checked = tryRun("qemu-img", "check", image);
      assert(checked.success, checked.text);
    }
    const raw = folder.file("raw");
    run("qemu-img", "convert", "-f", format, "-O", "raw", image, raw);
    load.verify(Deno.readFileSync(raw));
  } catch (error) {
    throw new Error(`with VBLK_SEED=${seed}: ${(error as Error).message}`, { cause: error });
  }
}

Deno.test({
  name:
    "what was in flight is carried out again in the order in which it was submitted, and what was not is left alone",
  ...requiresServe(),
  async fn() {
    using folder = new Folder();
    const [image, socket] = [folder.file("disk", new Uint8Array(1 << 20)), folder.file("vm.sock")];
    await using process = await ServeProcess.ready([image, "-f", "raw", "--vhost-user", socket]);
    const last = new Set<number>();
    for (let seed = 1; seed <= 8; seed++) {
      using guest = new Guest();
      {
        using front = new FrontEnd(socket);
        guest.start(front);
      }
      // As a back-end left it that took eight writes to one place, in an order that the ring no longer shows, and had
      // returned none of them.
      const order = new Random(seed).shuffle(Array.from({ length: 8 }, (_, head) => head));
      for (let slot = 0; slot < 8; slot++) {
        guest.data(slot, 4096).fill(0x10 + slot);
        guest.submit(slot, TYPE.write, 8192, 4096);
      }
      const view = new DataView(guest.area!.payload.buffer, guest.area!.payload.byteOffset);
      using area = Mapping.ofFile(guest.area!.fd, { lengthBytes: Number(view.getBigUint64(0, true)) });
      const region = new QueueRegion(area.bytes, 0, roomyQueueSize(guest.size));
      region.clear();
      order.forEach((head, counter) => {
        const at = SPLIT_REGION.desc + head * SPLIT_STATE.bytes;
        region.setByte(at + SPLIT_STATE.inflight, 1);
        region.setCounter(at + SPLIT_STATE.counter, counter + 100);
      });
      region.begin();
      using front = new FrontEnd(socket);
      guest.start(front);
      const answers: Answer[] = [];
      while (answers.length < 8) answers.push(...guest.wait());
      assertEquals(answers.map(({ slot, status }) => [slot, status]), order.map((slot) => [slot, OK]));
      assertEquals(guest.read(8192, 4096), new Uint8Array(4096).fill(0x10 + order[7]), `seed ${seed}`);
      last.add(order[7]);
    }
    assert(last.size > 2, "the seeds say nothing");
    assertEquals((await process.stop()).code, 0);
  },
});
