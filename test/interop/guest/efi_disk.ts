/**
 * A disk that UEFI firmware boots: FAT without partitions, and on it EFI/BOOT/BOOTX64.EFI, which does what the boot
 * sector of `boot_sector.ts` does. It asks the firmware for the disk that it was loaded from, reads sector `TEXT_SECTOR`
 * of it, sends the text there to the first serial port, writes it to `COPY_SECTOR`, flushes, and ends QEMU.
 */

import { COPY_SECTOR, TEXT_SECTOR } from "./boot_sector.ts";

const SECTOR = 512;

/** Size of the disk; FAT12, since it has fewer than 4085 clusters. */
const DISK_SECTORS = 8192;
/** Both sectors of the test lie before the FAT, among those that the file system leaves alone. */
const RESERVED_SECTORS = 16;
const FAT_SECTORS = 6;
const ROOT_ENTRIES = 16;
const CLUSTER_SECTORS = 4;
const FAT_AT = RESERVED_SECTORS * SECTOR;
const ROOT_AT = FAT_AT + FAT_SECTORS * SECTOR;
/** Where cluster 2, the first one, starts. */
const DATA_AT = ROOT_AT + 32 * ROOT_ENTRIES;
const FOLDER = 0x10;

/** The image starts here in the firmware's memory, and its only section so far behind that. */
const SECTION_RVA = 0x1000;
/** Places in the section. */
const LOADED_IMAGE_GUID = 0x100;
const BLOCK_IO_GUID = 0x110;
const BUFFER = 0x200;
const SECTION_BYTES = 0x400;
/** Where the section starts in the file. */
const SECTION_AT = 0x200;

/** A disk that prints `text` when it is booted. */
export function efiDisk(text: string): Uint8Array<ArrayBuffer> {
  const disk = new Uint8Array(DISK_SECTORS * SECTOR);
  disk.set(parameterBlock());
  disk.set(new TextEncoder().encode(text), TEXT_SECTOR * SECTOR);
  // Clusters 0 and 1 do not exist; 2, 3 and 4 are the last ones of a chain each.
  disk.set([0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f], FAT_AT);
  const program = efiProgram();
  const cluster = (number: number) => DATA_AT + (number - 2) * CLUSTER_SECTORS * SECTOR;
  disk.set(entry("EFI        ", 2, FOLDER), ROOT_AT);
  disk.set([...entry(".          ", 2, FOLDER), ...entry("..         ", 0, FOLDER)], cluster(2));
  disk.set(entry("BOOT       ", 3, FOLDER), cluster(2) + 64);
  disk.set([...entry(".          ", 3, FOLDER), ...entry("..         ", 2, FOLDER)], cluster(3));
  disk.set(entry("BOOTX64 EFI", 4, 0, program.byteLength), cluster(3) + 64);
  disk.set(program, cluster(4));
  return disk;
}

/** The first sector. */
function parameterBlock(): Uint8Array {
  const sector = new Uint8Array(SECTOR);
  const view = new DataView(sector.buffer);
  sector.set([0xeb, 0x3c, 0x90, ...new TextEncoder().encode("VBLKTEST")]);
  view.setUint16(11, SECTOR, true);
  view.setUint8(13, CLUSTER_SECTORS);
  view.setUint16(14, RESERVED_SECTORS, true);
  view.setUint8(16, 1); // FATs
  view.setUint16(17, ROOT_ENTRIES, true);
  view.setUint16(19, DISK_SECTORS, true);
  view.setUint8(21, 0xf8); // no floppy
  view.setUint16(22, FAT_SECTORS, true);
  view.setUint16(24, 32, true); // sectors of a track, and heads
  view.setUint16(26, 2, true);
  view.setUint8(36, 0x80); // the first disk
  view.setUint8(38, 0x29); // what follows is there
  sector.set(new TextEncoder().encode("EFI TEST   FAT12   "), 43);
  sector.set([0x55, 0xaa], 510);
  return sector;
}

/** A directory's entry. */
function entry(name: string, cluster: number, attributes: number, sizeBytes = 0): Uint8Array {
  const bytes = new Uint8Array(32);
  bytes.set(new TextEncoder().encode(name));
  bytes[11] = attributes;
  const view = new DataView(bytes.buffer);
  view.setUint16(26, cluster, true);
  view.setUint32(28, sizeBytes, true);
  return bytes;
}

/** The program as a PE32+ image (an EFI application for x86-64). It needs no relocation, so it has no table of them. */
function efiProgram(): Uint8Array {
  const file = new Uint8Array(SECTION_AT + SECTION_BYTES);
  const view = new DataView(file.buffer);
  const half = (at: number, value: number) => view.setUint16(at, value, true);
  const word = (at: number, value: number) => view.setUint32(at, value, true);
  const coff = 0x44;
  const optional = coff + 20;
  const directories = 6;
  const optionalBytes = 112 + 8 * directories;
  const section = optional + optionalBytes;
  file.set([0x4d, 0x5a]); // MZ
  word(0x3c, coff - 4);
  file.set([0x50, 0x45, 0, 0], coff - 4); // PE
  half(coff, 0x8664); // x86-64
  half(coff + 2, 1); // sections
  half(coff + 16, optionalBytes);
  half(coff + 18, 0x22); // executable, anywhere in memory
  half(optional, 0x20b); // PE32+
  word(optional + 4, SECTION_BYTES);
  word(optional + 16, SECTION_RVA); // entry point
  word(optional + 20, SECTION_RVA);
  word(optional + 32, 0x1000); // alignment in memory, and in the file
  word(optional + 36, SECTION_AT);
  word(optional + 56, 2 * SECTION_RVA); // size in memory
  word(optional + 60, SECTION_AT); // size of the headers
  half(optional + 68, 10); // an EFI application
  word(optional + 108, directories);
  file.set(new TextEncoder().encode(".text"), section);
  word(section + 8, SECTION_BYTES);
  word(section + 12, SECTION_RVA);
  word(section + 16, SECTION_BYTES);
  word(section + 20, SECTION_AT);
  word(section + 36, 0xe000_0020); // code, to be read, written and run
  file.set(code(), SECTION_AT);
  // 5b1b31a1-9562-11d2-8e3f-00a0c969723b and 964e5b21-6459-11d2-8e39-00a0c969723b
  const [tail1, tail2] = [[0x3f, 0x00, 0xa0], [0x39, 0x00, 0xa0]].map((middle) => [...middle, 0xc9, 0x69, 0x72, 0x3b]);
  file.set([0xa1, 0x31, 0x1b, 0x5b, 0x62, 0x95, 0xd2, 0x11, 0x8e, ...tail1], SECTION_AT + LOADED_IMAGE_GUID);
  file.set([0x21, 0x5b, 0x4e, 0x96, 0x59, 0x64, 0xd2, 0x11, 0x8e, ...tail2], SECTION_AT + BLOCK_IO_GUID);
  return file;
}

/** The machine code, at the start of the section. The firmware calls it with its handle in rcx, its table in rdx. */
function code(): number[] {
  const bytes: number[] = [];
  const add = (...more: number[]) => void bytes.push(...more);
  /** An instruction with the distance to a place in the section as its last four bytes. */
  const near = (place: number, ...opcode: number[]) => {
    const distance = place - (bytes.length + opcode.length + 4);
    add(...opcode, ...new Uint8Array(Int32Array.of(distance).buffer));
  };
  add(0xeb, 0x07); //                          jmp  start
  const failed = bytes.length;
  add(0xb0, 0x11); //                  failed: mov  al, 0x11
  const end = bytes.length;
  add(0xe6, 0xf4); //                     end: out  0xf4, al
  add(0xf4); //                          stop: hlt
  add(0xeb, 0xfd); //                          jmp  stop
  add(0x53, 0x56); //                   start: push rbx; push rsi
  add(0x48, 0x83, 0xec, 0x38); //              sub  rsp, 0x38          and rsp is a multiple of 16
  add(0x48, 0x8b, 0x5a, 0x60); //              mov  rbx, [rdx+0x60]    the boot services
  const protocol = (guid: number) => {
    near(guid, 0x48, 0x8d, 0x15); //           lea  rdx, [guid]
    add(0x4c, 0x8d, 0x44, 0x24, 0x28); //      lea  r8, [rsp+0x28]
    add(0xff, 0x93, 0x98, 0, 0, 0); //         call [rbx+0x98]         HandleProtocol(rcx, rdx, r8)
    check();
    add(0x48, 0x8b, 0x44, 0x24, 0x28); //      mov  rax, [rsp+0x28]
  };
  const check = () => {
    add(0x48, 0x85, 0xc0); //                  test rax, rax
    near(failed, 0x0f, 0x85); //               jnz  failed
  };
  const transfer = (sector: number, method: number) => {
    add(0x48, 0x89, 0xd9); //                  mov  rcx, rbx
    add(0x48, 0x8b, 0x43, 0x08); //            mov  rax, [rbx+8]
    add(0x8b, 0x10); //                        mov  edx, [rax]         the medium's number
    add(0x41, 0xb8, sector, 0, 0, 0); //       mov  r8d, sector
    add(0x41, 0xb9, 0x00, 0x02, 0, 0); //      mov  r9d, 512
    near(BUFFER, 0x48, 0x8d, 0x05); //         lea  rax, [buffer]
    add(0x48, 0x89, 0x44, 0x24, 0x20); //      mov  [rsp+0x20], rax
    add(0xff, 0x53, method); //                call [rbx+method]
    check();
  };
  protocol(LOADED_IMAGE_GUID);
  add(0x48, 0x8b, 0x48, 0x18); //              mov  rcx, [rax+0x18]    the disk that it was loaded from
  protocol(BLOCK_IO_GUID);
  add(0x48, 0x89, 0xc3); //                    mov  rbx, rax
  transfer(TEXT_SECTOR, 0x18); //                                      ReadBlocks
  near(BUFFER, 0x48, 0x8d, 0x35); //           lea  rsi, [buffer]
  add(0xba, 0xf8, 0x03, 0, 0); //              mov  edx, 0x3f8         the serial port
  add(0xac); //                          next: lodsb
  add(0x84, 0xc0); //                          test al, al
  add(0x74, 0x03); //                          jz   printed
  add(0xee); //                                out  dx, al
  add(0xeb, 0xf8); //                          jmp  next
  transfer(COPY_SECTOR, 0x20); //     printed:                         WriteBlocks
  add(0x48, 0x89, 0xd9); //                    mov  rcx, rbx
  add(0xff, 0x53, 0x28); //                    call [rbx+0x28]         FlushBlocks
  check();
  add(0xb0, 0x10); //                          mov  al, 0x10
  near(end, 0xe9); //                          jmp  end
  return bytes;
}
