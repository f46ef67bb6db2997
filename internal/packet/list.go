package packet

// list is a ring of sessions, through their own fields. It is guarded by
// socket.mu.
type list struct{ root session }

func (l *list) init() { l.root.next, l.root.prev = &l.root, &l.root }

func (l *list) add(s *session) {
	s.next, s.prev = l.root.next, &l.root
	s.next.prev, s.prev.next = s, s
}

func (l *list) remove(s *session) {
	s.prev.next, s.next.prev = s.next, s.prev
	s.next, s.prev = nil, nil
}

func (l *list) toFront(s *session) {
	if l.root.next != s {
		l.remove(s)
		l.add(s)
	}
}

// last is the one that was not moved to the front for longest, or nil.
func (l *list) last() *session {
	if l.root.prev == &l.root {
		return nil
	}
	return l.root.prev
}

// quiet is a heap of sessions, of which the first was not heard of for longest. It is
// guarded by socket.mu.
type quiet []*session

// Len, Less, Swap, Push and Pop implement heap.Interface.
func (q quiet) Len() int           { return len(q) }
func (q quiet) Less(i, j int) bool { return q[i].heard < q[j].heard }

func (q quiet) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

func (q *quiet) Push(x any) {
	s := x.(*session)
	s.place = len(*q)
	*q = append(*q, s)
}

func (q *quiet) Pop() any {
	last := len(*q) - 1
	x := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return x
}
