/* The token of whoever writes: startWriterLocked, nextWrite, releaseLocked, and
 * joinWriterLocked in writer.go. What is done under Conn.mu is one step here.
 *
 * Claims: there is one writer at most; everything queued before the output is
 * frozen can be written; nobody writes after the reader has joined the writer. */

#define SENDS 3

byte queued, written, writers, accepted
bool writing, frozen, joined

proctype writer()
{
	byte n;
	writers++;
	assert(writers == 1);
	do
	:: d_step { n = (frozen -> 0 : queued); queued = queued - n };
	   if
	   :: n > 0 ->
		assert(!joined);
		written = written + n
	   :: else ->
#ifdef BUG
		writers--;
		writing = false;
		break
#else
		d_step {
			if
			:: queued == 0 || frozen -> writers--; writing = false; n = 1
			:: else -> n = 0
			fi
		};
		if :: n == 1 -> break :: else fi
#endif
	   fi
	od
}

active [SENDS] proctype sender()
{
	atomic {
		if
		:: !frozen ->
			queued++; accepted++;
			if :: !writing -> writing = true; run writer() :: else fi
		:: else
		fi
	}
}

active proctype reader()
{
	if
	:: atomic { frozen = true };	/* the connection ends at any time */
	   !writing;
	   joined = true
	:: skip				/* or not */
	fi
}

active proctype claims()
{
	timeout;
	assert(!writing && writers == 0);
	assert(frozen || queued == 0 && written == accepted)
}
