package nbd

// Waiting is the number of connections that wait for memory.
func (s *Server) Waiting() int {
	s.budget.mu.Lock()
	defer s.budget.mu.Unlock()
	return len(s.budget.waiting)
}
