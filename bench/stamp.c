/* Gives every request of one h2load process a body of its own, and sees what h2load itself does not look at.
 *
 * h2load sends one file as the body of every request. Preloaded, this takes the place of that body: in the file named by
 * STAMP_BODY every "@@@@@@@@@@@@" becomes a number that no other has, and the "m##" that belongs to it that number
 * modulo 100 ("m#" modulo ten, "m####" modulo ten thousand), so that requests deliver distinct input ids over many
 * members. Lengths stay what they were. More is asked for in the environment:
 *
 * STAMP_SLOTS=n    every thread of h2load is one of n callers, for -t n -c n -m 1: caller i takes the numbers i, i + n,
 *                  i + 2n … and the member i.
 * STAMP_WAIT=fd    with slots: before its next request caller i waits for one byte from the descriptor fd + i; how long
 *                  that took since its request before, in ns, goes to STAMP_LOG, a number a line.
 * STAMP_SECOND=f   with slots: every second request of a caller has the body f, with the number of the one before; how
 *                  long both took together goes to STAMP_LOG.
 * STAMP_EVENTS=n   responses are streams of WatchEventsResponse: when STAMP_STREAMS of them have had n events each, the
 *                  process writes to STAMP_LOG when the second event of any of them came, and for each of them when its
 *                  last one came (CLOCK_MONOTONIC, ns), how many messages and how many bytes it had; and exits.
 * STAMP_EACH=f     with that: for each event, when the last stream had it goes to the file f, a number a line.
 * STAMP_READY=fd   with that: one byte goes to fd when each of them has had an event.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define ID "@@@@@@@@@@@@"
#define ID_LENGTH 12
#define MAX_MARKS 4096
#define MAX_SLOTS 1024
#define END_OF_DATA 1

/* What nghttp2 declares, as far as it is needed here. */
typedef struct nghttp2_session nghttp2_session;
typedef union { int fd; void *ptr; } data_source;
typedef ssize_t (*read_data)(nghttp2_session *, int32_t, uint8_t *, size_t, uint32_t *, data_source *, void *);
typedef struct { data_source source; read_data callback; } data_provider;
typedef int (*on_data)(nghttp2_session *, uint8_t, int32_t, const uint8_t *, size_t, void *);
void *nghttp2_session_get_stream_user_data(nghttp2_session *, int32_t);

/* A file with marks. */
struct body {
  char *text;
  size_t length, marks;
  size_t id[MAX_MARKS], member[MAX_MARKS];
  int width[MAX_MARKS];
};

/* A request that is under way, and what came back. */
struct request {
  char *text;
  size_t length, sent;
  uint8_t *message;
  size_t had, room;
  unsigned long events, messages, bytes;
  uint64_t done;
};

static struct body first, second;
static int slots, wait_fd = -1, ready_fd = -1, streams;
static unsigned long wanted;
static atomic_ulong counter, seen, finished;
static atomic_int threads;
static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static struct request *watched[MAX_SLOTS];
static int watches;
static uint64_t second_event, *all_had;
static int *had_by;
static uint64_t *took;
static atomic_ulong tooks;
static size_t took_room;

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static long number_of(const char *name, long otherwise) {
  const char *value = getenv(name);
  return value == NULL ? otherwise : atol(value);
}

static void fail(const char *why) {
  fprintf(stderr, "stamp: %s\n", why);
  _exit(3);
}

static void load(struct body *body, const char *path) {
  FILE *file = fopen(path, "rb");
  if (file == NULL) fail("a body is not there");
  fseek(file, 0, SEEK_END);
  body->length = (size_t)ftell(file);
  rewind(file);
  body->text = malloc(body->length + 1);
  if (fread(body->text, 1, body->length, file) != body->length) fail("a body can't be read");
  fclose(file);
  char *end = body->text + body->length, *from = body->text, *id, *member = body->text;
  while ((id = memmem(from, (size_t)(end - from), ID, ID_LENGTH)) != NULL) {
    size_t k = body->marks++;
    if (k >= MAX_MARKS) fail("too many marks");
    body->id[k] = (size_t)(id - body->text);
    member = memmem(member, (size_t)(end - member), "m#", 2);
    if (member != NULL) {
      body->member[k] = (size_t)(member + 1 - body->text);
      for (member++; member < end && *member == '#'; member++) body->width[k]++;
    } else {
      member = end;
    }
    from = id + ID_LENGTH;
  }
}

__attribute__((constructor)) static void begin(void) {
  if (getenv("STAMP_BODY") == NULL) return;
  load(&first, getenv("STAMP_BODY"));
  if (getenv("STAMP_SECOND") != NULL) load(&second, getenv("STAMP_SECOND"));
  slots = (int)number_of("STAMP_SLOTS", 0);
  wait_fd = (int)number_of("STAMP_WAIT", -1);
  ready_fd = (int)number_of("STAMP_READY", -1);
  wanted = (unsigned long)number_of("STAMP_EVENTS", 0);
  streams = (int)number_of("STAMP_STREAMS", 0);
  if (getenv("STAMP_EACH") != NULL) {
    all_had = calloc(wanted + 1, sizeof *all_had);
    had_by = calloc(wanted + 1, sizeof *had_by);
  }
  took_room = 4u << 20;
  if (wait_fd >= 0 || second.text != NULL) took = malloc(took_room * sizeof *took);
}

__attribute__((destructor)) static void end(void) {
  FILE *log = took != NULL ? fopen(getenv("STAMP_LOG"), "w") : NULL;
  if (log == NULL) return;
  for (unsigned long k = 0; k < atomic_load(&tooks); k++) fprintf(log, "%llu\n", (unsigned long long)took[k]);
  fclose(log);
}

static char *stamped(const struct body *body, unsigned long number, long member) {
  char *text = malloc(body->length + 1), digits[32];
  memcpy(text, body->text, body->length);
  for (size_t k = 0; k < body->marks; k++) {
    snprintf(digits, sizeof digits, "%012lu", number + k);
    memcpy(text + body->id[k], digits, ID_LENGTH);
    if (body->width[k] == 0) continue;
    unsigned long members = 1;
    for (int w = 0; w < body->width[k]; w++) members *= 10;
    unsigned long one = member >= 0 ? (unsigned long)member : (number + k) % members;
    snprintf(digits, sizeof digits, "%0*lu", body->width[k], one);
    memcpy(text + body->member[k], digits, (size_t)body->width[k]);
  }
  return text;
}

/* The body of the next request of this thread. */
static const struct body *next(struct request *request) {
  static _Thread_local int slot = -1;
  static _Thread_local unsigned long turn;
  static _Thread_local uint64_t began;
  if (slots == 0) {
    request->text = stamped(&first, atomic_fetch_add(&counter, first.marks), -1);
    return &first;
  }
  if (slot < 0) slot = atomic_fetch_add(&threads, 1);
  const struct body *body = second.text != NULL && turn % 2 == 1 ? &second : &first;
  unsigned long number = (unsigned long)slot + (unsigned long)slots * (second.text != NULL ? turn / 2 : turn);
  char byte;
  if (turn > 0 && wait_fd >= 0 && read(wait_fd + slot, &byte, 1) != 1) fail("nobody says that inputs are settled");
  if (body == &first) {
    uint64_t when = now();
    unsigned long place = took != NULL && turn > 0 ? atomic_fetch_add(&tooks, 1) : took_room;
    if (place < took_room) took[place] = when - began;
    began = when;
  }
  turn++;
  request->text = stamped(body, number, slot);
  return body;
}

static ssize_t give(nghttp2_session *session, int32_t stream, uint8_t *buffer, size_t length, uint32_t *flags,
                    data_source *source, void *user) {
  (void)session, (void)stream, (void)user;
  struct request *request = source->ptr;
  size_t rest = request->length - request->sent, count = rest < length ? rest : length;
  memcpy(buffer, request->text + request->sent, count);
  request->sent += count;
  if (request->sent == request->length) {
    *flags |= END_OF_DATA;
    free(request->text);
    if (wanted == 0) free(request);
  }
  return (ssize_t)count;
}

typedef int32_t (*submit)(nghttp2_session *, const void *, const void *, size_t, const data_provider *, void *);

static int32_t submit_stamped(const char *name, nghttp2_session *session, const void *priority, const void *headers,
                              size_t count, const data_provider *provider, void *user) {
  submit real = (submit)dlsym(RTLD_NEXT, name);
  if (first.text == NULL || provider == NULL) return real(session, priority, headers, count, provider, user);
  struct request *request = calloc(1, sizeof *request);
  request->length = next(request)->length;
  if (wanted > 0) {
    pthread_mutex_lock(&list_lock);
    if (watches < MAX_SLOTS) watched[watches++] = request;
    pthread_mutex_unlock(&list_lock);
    user = request;
  }
  data_provider ours = {{.ptr = request}, give};
  return real(session, priority, headers, count, &ours, user);
}

int32_t nghttp2_submit_request(nghttp2_session *session, const void *priority, const void *headers, size_t count,
                               const data_provider *provider, void *user) {
  return submit_stamped("nghttp2_submit_request", session, priority, headers, count, provider, user);
}

/* What newer versions of h2load call; on 64 bits it takes the same. */
int32_t nghttp2_submit_request2(nghttp2_session *session, const void *priority, const void *headers, size_t count,
                                const data_provider *provider, void *user) {
  return submit_stamped("nghttp2_submit_request2", session, priority, headers, count, provider, user);
}

/* Streams of events. */

static size_t varint(const uint8_t **at, const uint8_t *end) {
  size_t value = 0;
  for (int shift = 0; *at < end; shift += 7) {
    uint8_t byte = *(*at)++;
    value |= (size_t)(byte & 0x7f) << shift;
    if (byte < 0x80) break;
  }
  return value;
}

/* How many events are in a WatchEventsResponse: page is its field 1, and events is field 1 of that. */
static unsigned long events_of(const uint8_t *at, size_t length) {
  const uint8_t *end = at + length;
  if (length == 0 || *at++ != 0x0a) return 0;
  varint(&at, end);
  unsigned long found = 0;
  while (at < end && *at == 0x0a) {
    at++;
    size_t size = varint(&at, end);
    at += size;
    found++;
  }
  return found;
}

static void report(void) {
  FILE *log = fopen(getenv("STAMP_LOG"), "w");
  if (log == NULL) fail("the log can't be written");
  fprintf(log, "%llu\n", (unsigned long long)second_event);
  for (int k = 0; k < watches; k++)
    fprintf(log, "%llu %lu %lu\n", (unsigned long long)watched[k]->done, watched[k]->messages, watched[k]->bytes);
  fclose(log);
  log = all_had != NULL ? fopen(getenv("STAMP_EACH"), "w") : NULL;
  for (unsigned long k = 0; log != NULL && k < wanted; k++) fprintf(log, "%llu\n", (unsigned long long)all_had[k]);
  if (log != NULL) fclose(log);
  _exit(0);
}

static void take(struct request *request, const uint8_t *data, size_t length) {
  unsigned long before = request->events;
  if (request->had + length > request->room) {
    request->room = 2 * (request->had + length);
    request->message = realloc(request->message, request->room);
  }
  memcpy(request->message + request->had, data, length);
  request->had += length;
  request->bytes += length;
  size_t at = 0;
  while (request->had - at >= 5) {
    const uint8_t *frame = request->message + at;
    size_t size = (size_t)frame[1] << 24 | (size_t)frame[2] << 16 | (size_t)frame[3] << 8 | frame[4];
    if (request->had - at - 5 < size) break;
    request->events += events_of(frame + 5, size);
    request->messages++;
    at += 5 + size;
  }
  memmove(request->message, request->message + at, request->had - at);
  request->had -= at;
  if (before == 0 && request->events > 0 && (int)atomic_fetch_add(&seen, 1) + 1 == streams && ready_fd >= 0)
    if (write(ready_fd, "r", 1) != 1) fail("nobody waits for the watchers");
  if (request->events == before) return;
  uint64_t when = now();
  if (second_event == 0 && request->events > 1) second_event = when;
  for (unsigned long k = before; had_by != NULL && k < request->events && k < wanted; k++)
    if (++had_by[k] == streams) all_had[k] = when;
  if (before < wanted && request->events >= wanted) {
    request->done = when;
    if ((int)atomic_fetch_add(&finished, 1) + 1 == streams) report();
  }
}

static on_data theirs;

static int on_chunk(nghttp2_session *session, uint8_t flags, int32_t stream, const uint8_t *data, size_t length,
                    void *user) {
  struct request *request = wanted > 0 ? nghttp2_session_get_stream_user_data(session, stream) : NULL;
  if (request != NULL) take(request, data, length);
  return theirs(session, flags, stream, data, length, user);
}

void nghttp2_session_callbacks_set_on_data_chunk_recv_callback(void *callbacks, on_data callback) {
  void (*real)(void *, on_data) = (void (*)(void *, on_data))dlsym(RTLD_NEXT, __func__);
  theirs = callback;
  real(callbacks, on_chunk);
}
