/**
 * What `vblk serve --help` prints.
 *
 * @module
 */

/** The lines. */
export const SERVE_HELP: readonly string[] = [
  "Usage: vblk serve [OPTIONS]... IMAGE --vhost-user SOCKET",
  "",
  "Gives a virtual machine its disk, through a vhost-user-blk socket. Linux only; needs --allow-ffi.",
  "",
  "  --vhost-user SOCKET   where front-ends connect; a socket that nobody listens at is replaced. Without it the socket",
  "                        that systemd passes (LISTEN_FDS) is used, which needs --allow-env",
  "  --once                end after the first front-end",
  "  -f, --format FORMAT   raw or qcow2; found out when not given",
  "  -r, --read-only       the guest must not write",
  "  -s, --snapshot        keep writes in memory, and forget them at the end",
  "  -U, --force-share     take no lock",
  "  -t, --cache MODE      writeback (default), none, writethrough, directsync, unsafe",
  "  -d, --discard MODE    unmap (default) or ignore",
  "  --direct              the same as -t none: go past the host's page cache",
  "  --device PROPERTIES   what the device offers, as for 'vblk attach'; '--device help' lists them",
  "  --iothreads N         spread the queues over N threads (default: 1), of a raw image given with -f raw: queue i is",
  "                        thread i modulo N's. Needs as many queues (--device num-queues=N), which the front-end uses",
  "  --poll-max-ns N       look for requests at most so long before sleeping (default: 100000); 0 sleeps at once",
  "  --pid-file FILE       write the process's number there while it serves",
  "",
  "To see what it does:",
  "  --stats[=SECONDS]     count and time every request; numbers on standard error at the end, and every so many seconds",
  "  --metrics ADDRESS     the same for Prometheus, over HTTP at HOST:PORT, PORT (of 127.0.0.1), or unix:PATH; needs",
  "                        --allow-net",
  "  --trace[=text|json]   every stage of every request, on standard error, as 'vblk attach' prints it",
  "  --explain             when a driver or a front-end breaks a rule, say which, and show the chain",
  "",
  "To change it while it runs:",
  "  --control SOCKET      where to take commands from the owner of the process. 'vblk resize --control SOCKET SIZE'",
  "                        changes the size of the disk, and the guest is told. Others send one JSON object a line:",
  '                        {"command":"resize","size":N}, {"command":"statistics"}, {"command":"stop"}',
  "",
  "SIGTERM and SIGINT let what is in flight end, flush, and close the image; SIGUSR2 prints statistics. Once it serves it",
  "says so on standard output, and to systemd (NOTIFY_SOCKET) if it may see the environment (--allow-env).",
  "",
  "Example: vblk serve disk.qcow2 --vhost-user /run/vm.sock --control /run/vm.ctl",
];
