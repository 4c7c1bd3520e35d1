/**
 * The first sector of a disk that a BIOS boots: it asks the BIOS for sector `TEXT_SECTOR`, sends the text there to the
 * first serial port, has the BIOS write it to `COPY_SECTOR`, and ends QEMU by its debug-exit device at port 0xf4.
 */

/** Where the text is, which ends with a zero byte. */
export const TEXT_SECTOR = 5;
/** Where the copy comes to. */
export const COPY_SECTOR = 9;

/** QEMU's exit code when all went well: the debug-exit device makes 2n + 1 of the 0x10 that is written to it. */
export const BOOTED = 0x21;

// The BIOS jumps to 0x7c00 in real mode, with its number of the disk in dl.
const CODE: readonly number[] = [
  [0x31, 0xc0], //             xor  ax, ax
  [0x8e, 0xd8], //             mov  ds, ax
  [0x8e, 0xd0], //             mov  ss, ax
  [0xbc, 0x00, 0x7c], //       mov  sp, 0x7c00
  [0xbe, 0x37, 0x7c], //       mov  si, readPacket
  [0xb4, 0x42], //             mov  ah, 0x42         extended read
  [0xcd, 0x13], //             int  0x13
  [0x72, 0x1e], //             jc   failed
  [0x52], //                   push dx
  [0xbe, 0x00, 0x80], //       mov  si, 0x8000
  [0xba, 0xf8, 0x03], //       mov  dx, 0x3f8        the serial port
  [0xac], //             next: lodsb
  [0x84, 0xc0], //             test al, al
  [0x74, 0x03], //             jz   printed
  [0xee], //                   out  dx, al
  [0xeb, 0xf8], //             jmp  next
  [0x5a], //          printed: pop  dx
  [0xbe, 0x47, 0x7c], //       mov  si, writePacket
  [0xb8, 0x00, 0x43], //       mov  ax, 0x4300       extended write
  [0xcd, 0x13], //             int  0x13
  [0x72, 0x04], //             jc   failed
  [0xb0, 0x10], //             mov  al, 0x10
  [0xeb, 0x02], //             jmp  end
  [0xb0, 0x11], //     failed: mov  al, 0x11
  [0xe6, 0xf4], //        end: out  0xf4, al
  [0xf4], //             stop: hlt
  [0xeb, 0xfd], //             jmp  stop
].flat();

/** What the BIOS is given: one sector, from or to 0x8000. */
function packet(sector: number): number[] {
  return [16, 0, 1, 0, 0x00, 0x80, 0, 0, sector, 0, 0, 0, 0, 0, 0, 0];
}

/** The first sectors of a disk that prints `text` when it is booted. */
export function bootableDisk(text: string): Uint8Array<ArrayBuffer> {
  const disk = new Uint8Array(16 * 512);
  disk.set([...CODE, ...packet(TEXT_SECTOR), ...packet(COPY_SECTOR)]);
  disk.set([0x55, 0xaa], 510);
  disk.set(new TextEncoder().encode(text), TEXT_SECTOR * 512);
  return disk;
}
