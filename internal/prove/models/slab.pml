/* A Handler's answers that gather without the lock: Slab in package outq, and
 * Reply.accept, gatherLocked and gatheringLock in conn.go.
 *
 * Claims: what a call has answered before it returned is in the queue of whoever
 * locks Conn.mu after that, in its place; nothing is taken twice or overwritten. */

#define CALLS 4
#define ROOM 2

byte slab[ROOM]		/* what is in it: the number of the call */
byte published		/* atomic */
byte added		/* the reader's own */
byte taken		/* guarded by mu */
byte returned, last	/* calls that have returned; the last one in the queue */
bool locked

inline lock() {
	atomic { !locked -> locked = true };
	sees = returned;	/* what this lock comes after */
	i = taken; upto = published;
	do
	:: i < upto ->
		assert(slab[i] == last + 1);	/* in order, and whole */
		last = slab[i]; i++
	:: else -> break
	od;
	taken = upto;
	assert(last >= sees)
}

inline unlock() { locked = false }

active proctype reader()
{
	byte k, i, upto, sees;
	for (k : 1 .. CALLS) {
		if
		:: added == ROOM ->
#ifdef BUG
			added = 0; published = 0; taken = 0;	/* without the lock */
#else
			lock(); added = 0; published = 0; taken = 0; unlock();
#endif
		:: else
		fi;
		slab[added] = k; added++;
		published = added;
		returned = k
	};
	lock(); unlock();
	assert(last == CALLS)
}

active proctype other()
{
	byte n, i, upto, sees;
	for (n : 1 .. 3) { lock(); unlock() }
}
