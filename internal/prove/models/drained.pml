/* Drained with a Handler: what others send is written by the writer, and the
 * reader, which may be parked, has to be told when all of it is: nextWrite and
 * releaseLocked in writer.go, writeNow and flush in conn.go, Kick in package
 * transport. What is done under Conn.mu is one step here.
 *
 * Claim: after every write that emptied the queue Drained is called, also when
 * that sends something itself. */

#define SENDS 2

byte queue, calls
bool writing, flushed, drained, kicked, parked
bool due	/* the queue was emptied, and Drained was not called after it */

inline start() { if :: !writing -> writing = true; run writer() :: else fi }

proctype writer()
{
	byte n;
	do
	:: d_step { n = queue; queue = 0 };
	   if
	   :: n > 0 -> d_step { flushed = true; due = (queue == 0 -> true : due) }
	   :: else ->
		atomic {
			if
			:: queue > 0
			:: queue == 0 && flushed -> flushed = false; drained = true
			:: queue == 0 && !flushed ->
				writing = false;
				if
#ifdef BUG
				:: drained && parked -> kicked = true	/* a kick of who is not parked is lost */
#else
				:: drained -> kicked = true
#endif
				:: else
				fi;
				break
			fi
		}
	   fi
	od
}

active [SENDS] proctype sender() { atomic { queue++; start() } }

active proctype reader()
{
	bool now;
	do
	:: d_step {
		now = drained; drained = false;
		if	/* not before what was queued since is written too */
		:: now && queue > 0 -> now = false; flushed = true
		:: else
		fi
	   };
	   if
	   :: now ->
		d_step { due = false; calls++ };
		if :: calls == 1 -> atomic { queue++; start() } :: else fi
	   :: else ->
		parked = true;
end:		kicked;
		d_step { kicked = false; parked = false }
	   fi
	od
}

active proctype claims()
{
	timeout;
	assert(queue == 0 && !writing && !due && !drained)
}
