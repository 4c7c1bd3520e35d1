/**
 * What `vblk attach --help` prints.
 *
 * @module
 */

/** The lines. */
export const ATTACH_HELP: readonly string[] = [
  "Usage: vblk attach [OPTIONS]... [IMAGE]",
  "",
  "Boots a guest with a virtio disk in this process, and runs commands in it. IMAGE is a raw or qcow2 image, a block",
  "device, or mem:SIZE for a disk in memory; as in QEMU also json:{...}, blkdebug:CONFIG:FILE, or null-co://. The",
  "command language is qemu-io's, with what a ring has in addition: see -c help.",
  "",
  "Examples:",
  "  vblk attach disk.img                                   a prompt",
  "  vblk attach -r disk.img -c 'read -v 0 512'             one command",
  "  vblk attach mem:64M --script test.vblk --stats         a script, then numbers",
  "  vblk attach mem:1M --trace -c 'write 0 4k'             every stage of a request",
  "  vblk attach mem:1M --device packed=on --script test.ts a module: export default async (guest, machine) => ...",
  "",
  "Commands come from -c, from --script, or else from standard input: a prompt on a terminal, lines on a pipe. All of",
  "them are run; the exit status is 1 if any failed, 2 if the arguments make no sense.",
  "",
  "As in qemu-io:",
  "  -c, --cmd STRING       run a command (repeatable)",
  "  -f, --format FMT       format of the image; found out when not given",
  "  -r, --read-only        open for reading only",
  "  -s, --snapshot         keep writes in memory, and forget them at the end",
  "  -t, --cache MODE       writeback (default), writethrough, none, directsync, unsafe; qemu-io's default is",
  "                         writethrough, with which a flush has nothing left to do",
  "  -n, --nocache          the same as -t none",
  "  -d, --discard MODE     unmap (default): discards reach the image; ignore: they change nothing",
  "  -U, --force-share      take no lock on the image",
  "      --image-opts       IMAGE is a set of options: driver=raw,file.filename=disk.img; 'help' lists them",
  "  -i, --aio MODE, -k, -C, -m   accepted; nothing here that they could change",
  "",
  "Besides:",
  "      --script FILE      run a script (a command a line, # for comments), or a .ts or .js module",
  "      --device PROP=VALUE,...  what the device offers (repeatable); --device help lists the properties",
  "      --decline FEATURE,...    features that the driver declines, by name: EVENT_IDX,INDIRECT_DESC",
  "      --ram SIZE         the guest's memory (32M)",
  "      --trace[=text|json]  print every stage of every request, on standard error; json is one object a line with",
  "                         time (ms), sequence, event, and the fields of that event",
  "      --explain          when the driver breaks a rule, say which, and show the chain, on standard error",
  "      --stats            print numbers when the image is closed: requests, latency, batches, exits",
  "      --json             print every result, and --stats, as one JSON object a line",
  "  -h, --help, -V, --version",
];
