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
func (l *list) last() *session { return l.before(&l.root) }

// before is the one in front of s, or nil.
func (l *list) before(s *session) *session {
	if s.prev == &l.root {
		return nil
	}
	return s.prev
}
