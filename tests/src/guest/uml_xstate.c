/*
 * Preloaded into Debian 12's User-Mode Linux. Its kernel (6.1) keeps a guest process's FPU state in a buffer of fixed size and
 * sets the state with that size; the host accepts nothing but the whole of it (Linux, arch/x86/kernel/fpu/regset.c,
 * xstateregs_set). On processors with AMX the whole is larger, and the guest's init dies with "ptrace set fp regs
 * failed". This puts what the guest gives on top of what the process has, and sets the whole. Where the sizes agree it
 * does nothing.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

long ptrace(enum __ptrace_request request, ...)
{
	static long (*next)(enum __ptrace_request, ...);
	static char whole[1 << 16];
	va_list rest;
	long pid;
	void *address, *data;

	va_start(rest, request);
	pid = va_arg(rest, long);
	address = va_arg(rest, void *);
	data = va_arg(rest, void *);
	va_end(rest);
	if (!next)
		next = (long (*)(enum __ptrace_request, ...))dlsym(RTLD_NEXT, "ptrace");
	if (request == PTRACE_SETREGSET && address == (void *)NT_X86_XSTATE) {
		struct iovec *given = data, full = { whole, sizeof(whole) };

		if (next(PTRACE_GETREGSET, pid, address, &full) == 0 && full.iov_len > given->iov_len) {
			memcpy(whole, given->iov_base, given->iov_len);
			data = &full;
			return next(request, pid, address, data);
		}
	}
	return next(request, pid, address, data);
}
