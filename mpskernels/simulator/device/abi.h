// What a compiled metallib and the software device agree on. Included by the MSL headers (C++ for OpenCL) and by the
// device (C++20), so it uses only what both accept. A change here is a new MPSK_ABI_VERSION.
#pragma once

#define MPSK_ABI_VERSION 2u
#define MPSK_SIMD_WIDTH 32u
#define MPSK_MAX_BUFFERS 31u
#define MPSK_MAX_THREADGROUP_BYTES 32768u
#define MPSK_MAX_THREADS_PER_THREADGROUP 1024u
// Threads run on stacks of this size, a power of two, each aligned to it; above where a stack begins lies an mpsk_slot,
// so that the running thread is found from any address on its stack. Lanes touch the same places of their stacks one
// after the other: were these at the same offset in a page, they would share a few sets of the host's caches, so that
// offset differs from stack to stack.
#define MPSK_STACK_BYTES 262144ul
#define MPSK_STACK_COLOURS 32ul
#define MPSK_STACK_COLOUR_BYTES 128ul
#define MPSK_SLOT(address)                                          \
  (((address) | (MPSK_STACK_BYTES - 1)) - (sizeof(mpsk_slot) - 1) - \
   (address) / MPSK_STACK_BYTES % MPSK_STACK_COLOURS * MPSK_STACK_COLOUR_BYTES)

// String literals have an address space of their own in kernels.
#ifdef __OPENCL_CPP_VERSION__
#pragma OPENCL EXTENSION __cl_clang_function_pointers : enable
typedef const __constant char* mpsk_text;
#else
typedef const char* mpsk_text;
#endif

struct mpsk_size {
  unsigned x, y, z;
};

// The same for every thread of a dispatch.
struct mpsk_grid {
  mpsk_size threads;                           // threads_per_grid
  mpsk_size threadgroups;                      // threadgroups_per_grid
  mpsk_size dispatch_threads_per_threadgroup;  // as asked for; edge threadgroups may have fewer
};

// The same for every thread of a threadgroup.
struct mpsk_group {
  const mpsk_grid* grid;
  mpsk_size position;                        // threadgroup_position_in_grid
  mpsk_size threads;                         // threads_per_threadgroup, the actual number
  unsigned simdgroups;                       // simdgroups_per_threadgroup
  unsigned dispatch_simdgroups;              // dispatch_simdgroups_per_threadgroup
  unsigned char* const* threadgroup_memory;  // static declaration id -> its memory
};

// What one thread knows of itself. The device keeps more behind it.
struct mpsk_thread {
  const mpsk_group* group;
  mpsk_size position_in_grid;
  mpsk_size position_in_threadgroup;
  unsigned index_in_threadgroup;
  unsigned lane;       // thread_index_in_simdgroup
  unsigned simdgroup;  // simdgroup_index_in_threadgroup
};

#define MPSK_MAX_CALLS 14u

struct mpsk_slot {
  const mpsk_thread* running;
  // Whether the thread passes by the operations on matrices that the first lane performs for its simdgroup.
  unsigned long passes_by;
  // Places in the source, growing with it: the operation or call that the thread is at, and the calls that led there.
  unsigned place;
  unsigned depth;
  unsigned calls[MPSK_MAX_CALLS];
};

enum mpsk_argument_kind {
  mpsk_argument_device = 0,
  mpsk_argument_constant = 1,
  mpsk_argument_threadgroup = 2,
  mpsk_argument_builtin = 3,
};

struct mpsk_argument {
  mpsk_text name;
  mpsk_text type;          // as written in the source
  unsigned kind;           // mpsk_argument_kind
  unsigned index;          // buffer or threadgroup slot; unused for a builtin
  unsigned element_size;   // bytes of the pointee
  unsigned element_align;  // required alignment of the pointer in bytes
  unsigned is_const;       // pointee is const: the kernel cannot write through it
  unsigned is_reference;   // needs at least element_size bytes
  const bool* enabled;     // [[function_constant(name)]]: bound only where the constant is true; null: always
};

struct mpsk_constant;

// The rewritten source of a translation unit, from which its instrumented twin is compiled.
struct mpsk_source {
  const char* text;
  unsigned long size;
  mpsk_text std;        // as the compiler's option: "metal3.1"
  mpsk_text math_mode;  // "fast", "relaxed" or "safe"
};

typedef void (*mpsk_entry)(const mpsk_thread* thread, void* const* slots);  // slots[i]: the memory of arguments[i]
typedef void (*mpsk_derive)();

// One [[host_name]] instantiation or plain kernel. Entries live in the section "mpsk_kernels".
struct mpsk_kernel {
  mpsk_text name;
  mpsk_text file;
  unsigned line;
  unsigned argument_count;
  const mpsk_argument* arguments;
  unsigned max_total_threads;  // [[max_total_threads_per_threadgroup(n)]], or 0
  unsigned constant_count;
  const mpsk_constant* const* constants;  // the function constants that it uses, directly or through others
  const mpsk_text* threadgroup_names;     // of its threadgroup declarations, by their numbers
  mpsk_entry entry;
  const mpsk_source* source;  // null in an instrumented metallib
};

// A function constant. Entries live in the section "mpsk_constants". The device writes `value` and `defined`, then
// calls every entry of the section "mpsk_derived" (void (*)()), which recomputes constants that are derived from
// others.
struct mpsk_constant {
  mpsk_text name;
  mpsk_text type;  // bool, char, uchar, short, ushort, int, uint, long, ulong, half, bfloat, float, or a vector of them
  unsigned index;
  unsigned size;  // bytes
  bool optional;  // every use is guarded by is_function_constant_defined
  void* value;
  bool* defined;
};

// A `threadgroup` declaration inside a kernel: written by the compiled code into the section "mpsk_threadgroup", one
// record for each place where the declaration was emitted. `where` lies in the entry function it belongs to.
struct mpsk_threadgroup_record {
  unsigned long where;
  unsigned long id;  // unique within one kernel; the same declaration may be recorded more than once
  unsigned long size;
  unsigned long align;
};

// --- Instrumented code (compiler/instrument.py) ---

// In an instrumented kernel a pointer into a buffer or a threadgroup array carries, above its 47 bits of address, a
// tag: the number of the object that it was made for. Every access asks the device for the address to use.
#define MPSK_ADDRESS_BITS 47ul
#define MPSK_ADDRESS ((1ul << MPSK_ADDRESS_BITS) - 1)
#define MPSK_WRAPPED (1ul << 47)  // set by an access whose 32-bit index was cut off
#define MPSK_TAG_SHIFT 48ul
#define MPSK_TAGGED (1ul << 62)

// An access in the source, or a call that waits for other lanes.
struct mpsk_site {
  mpsk_text file;
  mpsk_text function;
  unsigned line, column;
  unsigned size;       // bytes; 0: given by the call
  unsigned align;      // what the type of the access needs
  unsigned is_struct;  // moved as a whole, with the holes that it may have
};

// What one pass through a basic block does, for one lane.
struct mpsk_block {
  unsigned instructions;
  unsigned f32_flops, f16_flops;
  unsigned special;  // exp, sin, rsqrt, divisions, ...
  unsigned integer_operations;
  unsigned matrix_operations;  // multiply-accumulates of 8x8 matrices, which one lane counts for its simdgroup
  const mpsk_site* matrix;     // where, if the block has an operation of matrices, which all lanes must pass together
};

// A function. Entries live in the section "mpsk_code".
struct mpsk_code {
  const mpsk_block* blocks;
  unsigned block_count;
  unsigned first;  // of its counters among those of a lane, set by the device
  bool shared;     // not an entry: may be called by several kernels
};

// Exported as `mpsk_metallib` by every metallib.
struct mpsk_metallib_header {
  char magic[8];  // "MPSKLIB"
  unsigned abi_version;
  unsigned msl_version;  // 310 for Metal 3.1
  mpsk_text math_mode;   // "fast", "relaxed" or "safe"
  mpsk_text target;      // the processor it was compiled for
  const mpsk_kernel* kernels_begin;
  const mpsk_kernel* kernels_end;
  const mpsk_constant* constants_begin;
  const mpsk_constant* constants_end;
  const mpsk_derive* derived_begin;
  const mpsk_derive* derived_end;
  const mpsk_threadgroup_record* threadgroup_begin;
  const mpsk_threadgroup_record* threadgroup_end;
  mpsk_code* code_begin;  // none but in an instrumented metallib
  mpsk_code* code_end;
};

// A metallib file is a shared object followed by this trailer, so that a truncated or foreign file is refused before it
// is mapped.
struct mpsk_metallib_trailer {
  char magic[8];  // "MPSKEND"
  unsigned abi_version;
  unsigned crc32;      // of everything before the trailer
  unsigned long size;  // bytes before the trailer
};
