// Serial queues, in the place of libdispatch: a mutex that knows its owner.
#include <c10/util/Exception.h>
#include <dispatch/dispatch.h>

#include <atomic>
#include <cstring>
#include <mutex>
#include <thread>

#include "objects.h"

namespace {

struct Object {
  virtual ~Object() = default;
  std::atomic<int> references{1};
};

}  // namespace

struct mpsk_dispatch_queue : Object {
  std::string label;
  std::mutex mutex;
  std::atomic<std::thread::id> owner;
  std::atomic<unsigned long> generation{0};
};

struct mpsk_dispatch_data : Object {
  std::string bytes;
};

namespace {

// On a queue for the length of a scope.
class Entered {
 public:
  explicit Entered(dispatch_queue_t queue) : queue_(*queue) {
    mpsk::refuse_in_bad_fork();
    if (mpsk::on_queue(queue)) {
      mpsk::invalid("dispatch_sync on the queue \"" + queue_.label +
                    "\" from a block that already runs on it: a Mac waits for ever here");
    }
    queue_.mutex.lock();
    queue_.owner = std::this_thread::get_id();
    ++queue_.generation;
  }
  ~Entered() {
    queue_.owner = std::thread::id();
    queue_.mutex.unlock();
  }
  Entered(const Entered&) = delete;
  Entered& operator=(const Entered&) = delete;

 private:
  mpsk_dispatch_queue& queue_;
};

// libdispatch's frames do not unwind.
template <class Work>
void run_contained(const Work& work) {
  std::string what = "it is no std::exception";
  try {
    work();
    return;
  } catch (const mpsk::Misuse&) {
    throw;
  } catch (const c10::Error& error) {
    what = error.what_without_backtrace();
  } catch (const std::exception& error) {
    what = error.what();
  } catch (...) {
  }
  mpsk::invalid("an exception left a dispatch block, which ends the process on a Mac: " + what);
}

template <class Work>
void run_once(dispatch_once_t* predicate, const Work& work) {
  std::atomic_ref<dispatch_once_t> done(*predicate);
  if (done.load(std::memory_order_acquire) != 0) return;
  static std::recursive_mutex mutex;
  std::scoped_lock lock(mutex);
  if (done.load(std::memory_order_relaxed) != 0) return;
  run_contained(work);
  done.store(~0l, std::memory_order_release);
}

}  // namespace

namespace mpsk {

bool on_queue(dispatch_queue_t queue) { return queue->owner == std::this_thread::get_id(); }

unsigned long queue_generation(dispatch_queue_t queue) { return queue->generation; }

const void* dispatch_data_bytes(dispatch_data_t data, size_t* size) {
  *size = data->bytes.size();
  return data->bytes.data();
}

}  // namespace mpsk

extern "C" {

dispatch_queue_t dispatch_queue_create(const char* label, dispatch_queue_attr_t) {
  auto* queue = new mpsk_dispatch_queue;
  if (label != nullptr) queue->label = label;
  return queue;
}

const char* dispatch_queue_get_label(dispatch_queue_t queue) { return queue->label.c_str(); }

void dispatch_sync_f(dispatch_queue_t queue, void* context, dispatch_function_t work) {
  Entered entered(queue);
  mpsk::AutoreleasePool pool;
  run_contained([&] { work(context); });
}

void dispatch_sync(dispatch_queue_t queue, dispatch_block_t block) {
  Entered entered(queue);
  mpsk::AutoreleasePool pool;
  run_contained(block);
}

void dispatch_assert_queue(dispatch_queue_t queue) {
  if (!mpsk::on_queue(queue)) mpsk::invalid("the caller is not on the queue \"" + queue->label + "\"");
}

void dispatch_once_f(dispatch_once_t* predicate, void* context, dispatch_function_t function) {
  run_once(predicate, [&] { function(context); });
}

void dispatch_once(dispatch_once_t* predicate, dispatch_block_t block) { run_once(predicate, block); }

dispatch_data_t mpsk_dispatch_data_create(const void* buffer, size_t size) {
  auto* data = new mpsk_dispatch_data;
  data->bytes.assign(static_cast<const char*>(buffer), size);
  return data;
}

dispatch_data_t dispatch_data_create(const void* buffer, size_t size, dispatch_queue_t, dispatch_block_t destructor) {
  dispatch_data_t data = mpsk_dispatch_data_create(buffer, size);
  if (destructor != nullptr) run_contained(destructor);
  return data;
}

void dispatch_retain(void* object) { ++static_cast<Object*>(object)->references; }

void dispatch_release(void* object) {
  auto* counted = static_cast<Object*>(object);
  if (--counted->references == 0) delete counted;
}

}  // extern "C"
