// The part of libdispatch that Metal code calls. Queues are serial; blocks run on the calling thread.
#pragma once

#include <Block.h>
#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mpsk_dispatch_queue* dispatch_queue_t;
typedef struct mpsk_dispatch_data* dispatch_data_t;
typedef const struct mpsk_dispatch_attr* dispatch_queue_attr_t;
typedef void (*dispatch_function_t)(void* context);
typedef long dispatch_once_t;

#define DISPATCH_QUEUE_SERIAL ((dispatch_queue_attr_t)0)

dispatch_queue_t dispatch_queue_create(const char* label, dispatch_queue_attr_t attr);
const char* dispatch_queue_get_label(dispatch_queue_t queue);

// Runs the work now, alone on its queue. Two mistakes throw std::runtime_error here: to be on that queue already, where
// a Mac waits for ever; and work that lets a C++ exception out, which ends the process on a Mac.
void dispatch_sync_f(dispatch_queue_t queue, void* context, dispatch_function_t work);

// Throws std::runtime_error where the caller is not on the queue (a Mac stops the process).
void dispatch_assert_queue(dispatch_queue_t queue);

void dispatch_once_f(dispatch_once_t* predicate, void* context, dispatch_function_t function);

// Bytes that newLibraryWithData:error: takes; always copied.
dispatch_data_t mpsk_dispatch_data_create(const void* buffer, size_t size);

void dispatch_retain(void* object);
void dispatch_release(void* object);

#ifdef __BLOCKS__
typedef void (^dispatch_block_t)(void);
#define DISPATCH_DATA_DESTRUCTOR_DEFAULT ((dispatch_block_t)0)

void dispatch_sync(dispatch_queue_t queue, dispatch_block_t block);
void dispatch_once(dispatch_once_t* predicate, dispatch_block_t block);
dispatch_data_t dispatch_data_create(const void* buffer, size_t size, dispatch_queue_t queue,
                                     dispatch_block_t destructor);
#endif

#ifdef __cplusplus
}  // extern "C"

namespace mpsk {

// Whether the calling thread is on the queue.
bool on_queue(dispatch_queue_t queue);
// Counts the blocks that entered the queue: tells one block from another.
unsigned long queue_generation(dispatch_queue_t queue);
const void* dispatch_data_bytes(dispatch_data_t data, size_t* size);

}  // namespace mpsk
#endif
