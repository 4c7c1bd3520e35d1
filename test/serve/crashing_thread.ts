/** An I/O thread with a bug: a read at one place of the disk ends with something that no storage says. */

import "../../src/serve/io_thread.ts";
import { UringFileStorage } from "../../src/storage/uring_file.ts";
import { CRASH_AT } from "./crash_place.ts";

const { read } = UringFileStorage.prototype;

UringFileStorage.prototype.read = function (offset, into) {
  if (offset !== CRASH_AT) return read.call(this, offset, into);
  return Promise.resolve().then(() => {
    throw new TypeError("a bug of this test");
  });
};
