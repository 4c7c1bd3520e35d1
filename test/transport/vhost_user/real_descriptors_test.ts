/** The protocol over a real socket, with real memory files and eventfds, of both kinds. */

import { assert, assertEquals } from "@std/assert";
import { EventFd } from "../../../src/host/event_fd.ts";
import { close, memfdCreate, POLL, poll } from "../../../src/host/libc.ts";
import { Mapping } from "../../../src/host/mapping.ts";
import { DescriptorList } from "../../../src/host/socket_message.ts";
import { UnixConnection } from "../../../src/host/unix_connection.ts";
import { VhostUserBackEnd } from "../../../src/transport/vhost_user/back_end.ts";
import {
  encodeMessage,
  FLAG_NEED_REPLY,
  HEADER_BYTES,
  REQUEST,
  type RequestName,
} from "../../../src/transport/vhost_user/vhost_user_layout.ts";
import { openDescriptors, requiresLibc } from "../../host/support.ts";
import { FakeHost } from "./fake_host.ts";
import { inflight, LAYOUTS, RAM_BYTES, regionTable, TestGuest, u64, vringAddress, vringState } from "./front_end.ts";
import { RealHost, serve } from "./real_host.ts";
import { ALL, diskBytes, Rig } from "./rig.ts";

/** Sends a message and waits for its answer, or for its acknowledgement. */
async function ask(
  socket: UnixConnection,
  name: RequestName,
  payload: Uint8Array = new Uint8Array(0),
  fds: readonly number[] = [],
): Promise<{ payload: Uint8Array; fd: number | null }> {
  socket.send(encodeMessage(REQUEST[name], FLAG_NEED_REPLY, payload), fds);
  while ((poll(socket.descriptor, POLL.IN, 0) & POLL.IN) === 0) await new Promise((next) => setTimeout(next, 0));
  using descriptors = new DescriptorList();
  const header = new Uint8Array(HEADER_BYTES);
  assertEquals(socket.receive(header, descriptors, 1000), "all");
  const answer = new Uint8Array(new DataView(header.buffer).getUint32(8, true));
  if (answer.byteLength > 0) assertEquals(socket.receive(answer, descriptors, 1000), "all");
  return { payload: answer, fd: descriptors.take() };
}

for (const layout of LAYOUTS) {
  Deno.test({
    name: `${layout} ring: over a real socket requests are answered, and neither descriptors nor mappings are left`,
    ...requiresLibc(),
    async fn() {
      // What Deno opens for itself when it first waits must not count.
      await new Promise((next) => setTimeout(next, 1));
      const before = openDescriptors();
      for (const blocking of [true, false]) {
        const memory = memfdCreate("vblk-test", RAM_BYTES);
        const mapping = Mapping.ofFile(memory, { lengthBytes: RAM_BYTES });
        await session(layout, memory, mapping.bytes, blocking);
        mapping.unmap();
        close(memory);
      }
      assertEquals(openDescriptors(), before);
    },
  });
}

async function session(layout: "split" | "packed", memory: number, ram: Uint8Array<ArrayBuffer>, blocking: boolean) {
  const host = new RealHost();
  const mapped = () => host.mappings.filter(({ isMapped }) => isMapped).length;
  const backEnd = new VhostUserBackEnd(Rig.deviceAlone(), host);
  const guest = new TestGuest({ layout, ram: { bytes: ram } });
  using kick = EventFd.create({ blocking });
  using call = EventFd.create({ blocking: !blocking });
  let area: Awaited<ReturnType<typeof ask>> | null = null;
  // The second connection finds the area of the first.
  for (const round of [0, 1]) {
    const [theirs, ours] = UnixConnection.pair();
    const served = serve(backEnd, host, ours);
    const good = async (...message: [RequestName, Uint8Array, number[]?]) =>
      assertEquals((await ask(theirs, ...message)).payload, u64(0), message[0]);
    theirs.send(encodeMessage(REQUEST.SET_PROTOCOL_FEATURES, 0, u64(ALL)));
    await good("SET_FEATURES", u64(guest.features));
    await good("SET_MEM_TABLE", regionTable(guest.region), [memory]);
    area ??= await ask(theirs, "GET_INFLIGHT_FD", inflight(0, 0, 1, guest.size));
    await good("SET_INFLIGHT_FD", area.payload, [area.fd!]);
    await good("SET_VRING_NUM", vringState(0, guest.size));
    await good("SET_VRING_BASE", vringState(0, layout === "packed" ? 0x8000_8000 : round * 8));
    await good("SET_VRING_ADDR", vringAddress(0, guest.userAddresses(0)));
    await good("SET_VRING_CALL", u64(0), [call.descriptor]);
    await good("SET_VRING_KICK", u64(0), [kick.descriptor]);
    await good("SET_VRING_ENABLE", vringState(0, 1));
    for (let i = 0; i < 8; i++) {
      guest.add("read", i, 512);
      kick.signal();
      while (!call.wait(0)) await new Promise((next) => setTimeout(next, 0));
      call.drain();
      const answers = guest.collect();
      // A call too many may come when the descriptor is set.
      if (answers.length === 0) {
        i--;
        continue;
      }
      assertEquals(answers.map(({ data }) => data), [diskBytes().subarray(i * 512, i * 512 + 512)]);
    }
    assertEquals(mapped(), 2);
    theirs.close();
    assertEquals(await served, { kind: "disconnected" });
    assertEquals(mapped(), 0);
  }
  close(area!.fd!);
}

Deno.test("the fake machine counts what is open", () => {
  const host = new FakeHost();
  assert(host.clean);
  host.closeFd(7);
  assert(!host.clean);
});
