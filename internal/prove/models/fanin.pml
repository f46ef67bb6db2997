/* How what readers report comes to the user in batches, and how the hub learns
 * that a batch was taken: package fanin (Run, settle, takeBack), and fan's
 * addedLocked and collect in hub.go. What is done under fan.mu is one step here.
 *
 * Claims: everything reported is received; a batch counts as taken only after it
 * was received; where somebody waits to know, it is taken in the end. */

#define REPORTS 3

chan out = [1] of { byte }	/* how many things are in the batch */
chan wake = [1] of { bit }

byte next, added, received, taken
bool some, wanted

inline signal() { if :: nfull(wake) -> wake!1 :: full(wake) fi }

active [REPORTS] proctype reader()
{
	d_step {
		next++; added++;
		if :: !some -> some = true; signal() :: else fi
	}
}

/* Somebody waits for what is in the channel to be taken. */
active proctype waiter() { d_step { wanted = true; signal() } }

active proctype user()
{
	byte n;
end:	do :: d_step { out?n -> received = received + n } od
}

inline take() {
	assert(taken + waiting <= received);
	taken = taken + waiting; waiting = 0
}

active proctype hub()
{
	byte waiting, back;
	bool offer;

	do
	:: offer = waiting > 0 && wanted;
end:	   if
	   :: wake?_
	   :: atomic { offer && nfull(out) -> out!0 };
	      take();
	      if :: out?back :: empty(out) fi	/* takeBack */
	   fi;
	   if
	   :: some ->
		if
		:: waiting > 0 ->
#ifdef BUG_TAKEN
			take()	/* put is not taken */
#else
			if
			:: out?back		/* settle: it still waits */
			:: atomic { empty(out) -> take() }
			fi
#endif
		:: else
		fi;
#ifdef BUG_LOST
		waiting = waiting + next; next = 0;
		some = false;
#else
		d_step { waiting = waiting + next; next = 0; some = false }
#endif
		out!waiting
	   :: else
	   fi
	od
}

active proctype claims()
{
	timeout;
	assert(received == REPORTS && taken == REPORTS)
}
