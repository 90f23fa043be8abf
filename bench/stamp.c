/* Gives every request of one h2load process a body of its own.
 *
 * h2load sends one file as the body of every request and reads it with pread for each. Preloaded, this overwrites two
 * marks in what was read: "@@@@@@@@@@@@" becomes a counter and "m##" the counter modulo 100, so that the requests
 * deliver distinct input ids over a hundred members; "m#" is ten members, "m####" ten thousand. The lengths stay what
 * they were.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>

static atomic_ulong counter;

ssize_t pread(int fd, void *buffer, size_t length, off_t offset) {
  static ssize_t (*real)(int, void *, size_t, off_t);
  if (real == NULL) real = (ssize_t(*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread");
  ssize_t count = real(fd, buffer, length, offset);
  if (count <= 0) return count;
  char *id = memmem(buffer, (size_t)count, "@@@@@@@@@@@@", 12);
  char *member = memmem(buffer, (size_t)count, "m#", 2);
  if (id == NULL || member == NULL) return count;
  unsigned long number = atomic_fetch_add(&counter, 1);
  char digits[16];
  snprintf(digits, sizeof digits, "%012lu", number);
  memcpy(id, digits, 12);
  unsigned long members = 1;
  int width = 0;
  for (; width < 9 && member + 1 + width < (char *)buffer + count && member[1 + width] == '#'; width++) members *= 10;
  snprintf(digits, sizeof digits, "%0*lu", width, number % members);
  memcpy(member + 1, digits, (size_t)width);
  return count;
}
