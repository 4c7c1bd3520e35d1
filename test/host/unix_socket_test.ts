import { assert, assertEquals } from "@std/assert";
import { close, fstat, lstat, memfdCreate, open } from "../../src/host/libc.ts";
import { DescriptorList } from "../../src/host/socket_message.ts";
import { SocketPathError } from "../../src/host/unix_address.ts";
import { ConnectionBroken, UnixConnection } from "../../src/host/unix_connection.ts";
import { UnixServer } from "../../src/host/unix_socket.ts";
import { Folder } from "../storage/support.ts";
import { errorOf, openDescriptors, requiresLibc } from "./support.ts";

/** A test that must leave the same descriptors open as it found. */
function test(name: string, fn: (folder: Folder) => void): void {
  Deno.test({
    name,
    ...requiresLibc(),
    fn() {
      using folder = new Folder();
      const before = openDescriptors();
      fn(folder);
      assertEquals(openDescriptors(), before, "descriptors leaked");
    },
  });
}

const bytes = (text: string) => new TextEncoder().encode(text);
const text = (data: Uint8Array) => new TextDecoder().decode(data);

test("a socket is made with mode 0600, serves, and takes its name away with it", (folder) => {
  const path = folder.file("s");
  const server = UnixServer.listen(path);
  assertEquals([lstat(path).kind, lstat(path).mode], ["socket", 0o600]);
  assertEquals(server.accept(0), null);
  using client = UnixConnection.connect(path);
  using connection = server.accept(1000)!;
  client.send(bytes("hello"));
  const found = new Uint8Array(5);
  using none = new DescriptorList();
  assertEquals(connection.receive(found, none, 1000), "all");
  assertEquals(text(found), "hello");
  server.close();
  assertEquals(errorOf(() => lstat(path)).message, `lstat '${path}': No such file or directory`);
});

test("a socket that nobody listens at is replaced", (folder) => {
  const path = folder.file("s");
  const dead = UnixServer.listen(path);
  close(dead.descriptor);
  using server = UnixServer.listen(path);
  using _client = UnixConnection.connect(path);
  server.accept(1000)!.close();
});

test("a socket that somebody listens at is refused, and left alone", (folder) => {
  const path = folder.file("s");
  using server = UnixServer.listen(path);
  Deno.symlinkSync(folder.path, folder.file("link"));
  for (const name of [path, folder.file("link/s"), `${folder.path}/./s`]) {
    const error = errorOf(() => UnixServer.listen(name)) as SocketPathError;
    assertEquals([error.message, error.hint], [
      `Another process listens at '${name}'`,
      "end it first, or give another path",
    ]);
  }
  // Nobody was connected to for it.
  assertEquals(server.accept(0), null);
  using _client = UnixConnection.connect(path);
  server.accept(1000)!.close();
});

test("a dead socket is replaced though another of its name is alive elsewhere", (folder) => {
  Deno.mkdirSync(folder.file("other"));
  using _alive = UnixServer.listen(folder.file("other/s"));
  const dead = UnixServer.listen(folder.file("s"));
  close(dead.descriptor);
  UnixServer.listen(folder.file("s")).close();
});

test("a file that is no socket is refused, and left alone", (folder) => {
  const path = folder.file("disk", bytes("data"));
  const error = errorOf(() => UnixServer.listen(path));
  assertEquals(error.message, `'${path}' exists and is not a socket`);
  assertEquals(Deno.readTextFileSync(path), "data");
});

test("a path that is too long is refused in words; one of the greatest length is taken", (folder) => {
  const most = folder.file("x".repeat(107 - folder.path.length - 1));
  UnixServer.listen(most).close();
  const error = errorOf(() => UnixServer.listen(`${most}x`)) as SocketPathError;
  assertEquals(
    error.message,
    `The path of a socket may have at most 107 bytes, and this one has 108: '${most}x'`,
  );
  assert(error.hint?.includes("relative"));
  errorOf(() => UnixServer.listen(""));
  errorOf(() => UnixConnection.connect("a\0b"));
});

test("a server that can't be made says why", (folder) => {
  const path = folder.file("nowhere/s");
  assertEquals(errorOf(() => UnixServer.listen(path)).message, `bind '${path}': No such file or directory`);
  assertEquals(errorOf(() => UnixConnection.connect(path)).message, `connect '${path}': No such file or directory`);
});

test("a server does not remove what has taken its name meanwhile", (folder) => {
  const path = folder.file("s");
  const first = UnixServer.listen(path);
  Deno.removeSync(path);
  using second = UnixServer.listen(path);
  first.close();
  using _client = UnixConnection.connect(path);
  second.accept(1000)!.close();
});

test("descriptors arrive with the message that they were sent with, and not with the one before", () => {
  const [a, b] = UnixConnection.pair();
  using _a = a;
  using _b = b;
  const [first, second] = [memfdCreate("one", 100), memfdCreate("two", 200)];
  a.send(bytes("none"));
  a.send(bytes("head"), [first, second]);
  a.send(bytes("tail"));
  close(first);
  close(second);
  const found = new Uint8Array(4);
  using descriptors = new DescriptorList();
  assertEquals([b.receive(found, descriptors, 1000), text(found), descriptors.count], ["all", "none", 0]);
  assertEquals([b.receive(found, descriptors, 1000), text(found), descriptors.count], ["all", "head", 2]);
  for (const sizeBytes of [100, 200]) {
    const descriptor = descriptors.take()!;
    assertEquals(fstat(descriptor).sizeBytes, sizeBytes);
    close(descriptor);
  }
  assertEquals(descriptors.take(), null);
  assertEquals([b.receive(found, descriptors, 1000), text(found), descriptors.count], ["all", "tail", 0]);
});

test("descriptors that nobody takes are closed", () => {
  const [a, b] = UnixConnection.pair();
  using _a = a;
  using _b = b;
  const descriptor = memfdCreate("one", 100);
  a.send(bytes("x"), Array(20).fill(descriptor));
  close(descriptor);
  using descriptors = new DescriptorList();
  b.receive(new Uint8Array(1), descriptors, 1000);
  assertEquals(descriptors.count, 20);
});

test("descriptors in a message that was never read are closed with the connection", () => {
  const [a, b] = UnixConnection.pair();
  const descriptor = memfdCreate("one", 100);
  a.send(bytes("x"), [descriptor, descriptor]);
  close(descriptor);
  a.close();
  b.close();
});

test("more descriptors than there is room for break the connection, and none of them stays open", () => {
  const [sender, end] = UnixConnection.pair();
  using _sender = sender;
  using narrow = new UnixConnection(end.descriptor, 2);
  const descriptor = memfdCreate("one", 100);
  sender.send(bytes("x"), [descriptor, descriptor, descriptor]);
  close(descriptor);
  using descriptors = new DescriptorList();
  const error = errorOf(() => narrow.receive(new Uint8Array(1), descriptors, 1000));
  assertEquals(error instanceof ConnectionBroken, true, String(error));
  assertEquals(error.message, "the other side sent more than 2 descriptors at once");
  assertEquals(descriptors.count, 2);
});

test("a message in pieces, each with descriptors, is put together", () => {
  const [a, b] = UnixConnection.pair();
  using _a = a;
  using _b = b;
  const descriptor = memfdCreate("one", 100);
  for (const piece of ["he", "l", "lo"]) a.send(bytes(piece), [descriptor]);
  close(descriptor);
  const found = new Uint8Array(5);
  using descriptors = new DescriptorList();
  assertEquals([b.receive(found, descriptors, 1000), text(found), descriptors.count], ["all", "hello", 3]);
});

test("the end of a connection, its end in the middle of a message, and silence are told apart", () => {
  const [a, b] = UnixConnection.pair();
  using _b = b;
  using none = new DescriptorList();
  const receive = () => b.receive(new Uint8Array(4), none, 20);
  assertEquals(receive(), "timeout");
  a.send(bytes("ha"));
  assertEquals(errorOf(receive).message, "the other side stopped in the middle of a message");
  a.send(bytes("ha"));
  a.close();
  assertEquals(errorOf(receive).message, "the other side closed the connection in the middle of a message");
  assertEquals(receive(), "end");
});

test("sending to one who has gone is an error, not the end of the process; one who does not read is not waited for", () => {
  const [a, b] = UnixConnection.pair();
  using _a = a;
  const error = errorOf(() => a.send(new Uint8Array(4 << 20), [], 20));
  assertEquals(error.message, "the other side does not read");
  b.close();
  assertEquals(errorOf(() => a.send(bytes("x"))).message, "sendmsg: Broken pipe");
});

test("a socket passed by systemd is taken over only if it is one that listens, and for this process", (folder) => {
  const pid = String(Deno.pid);
  using server = UnixServer.listen(folder.file("s"));
  assertEquals(UnixServer.adopt({ pid: undefined, count: undefined }), null);
  assertEquals(UnixServer.adopt({ pid: "1", count: "1" }), null);
  const descriptor = open("/dev/null", 0);
  assertEquals(
    errorOf(() => UnixServer.adopt({ pid, count: "1" }, descriptor)).message,
    `What was passed as descriptor ${descriptor} is not a Unix stream socket that listens`,
  );
  close(descriptor);
  errorOf(() => UnixServer.adopt({ pid, count: "2" }, server.descriptor));
  const adopted = UnixServer.adopt({ pid, count: "1" }, server.descriptor)!;
  using _client = UnixConnection.connect(folder.file("s"));
  adopted.accept(1000)!.close();
});
