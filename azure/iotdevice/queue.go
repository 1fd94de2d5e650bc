package iotdevice

import (
	"context"
	"sync"
)

// queue hands values from one side to the other in order and never makes the pushing side wait: paho stops reading from
// the network, PUBACKs and ping answers included, while its handler runs. What it can hold is bounded by what the hub
// sends unacknowledged.
type queue[T any] struct {
	mu     sync.Mutex
	values []T
	filled chan struct{} // holds a value when values may not be empty
}

func newQueue[T any]() *queue[T] { return &queue[T]{filled: make(chan struct{}, 1)} }

func (q *queue[T]) push(v T) {
	q.mu.Lock()
	q.values = append(q.values, v)
	q.mu.Unlock()
	select {
	case q.filled <- struct{}{}:
	default:
	}
}

// pop waits for a value; ok is false once ctx has ended. It is for one goroutine.
func (q *queue[T]) pop(ctx context.Context) (v T, ok bool) {
	for ctx.Err() == nil {
		if v, ok := q.take(); ok {
			return v, true
		}
		select {
		case <-q.filled:
		case <-ctx.Done():
		}
	}
	return v, false
}

func (q *queue[T]) take() (v T, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.values) == 0 {
		return v, false
	}
	v = q.values[0]
	var zero T
	q.values[0] = zero // lets the message go
	q.values = q.values[1:]
	return v, true
}
