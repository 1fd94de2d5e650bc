package broker_test

import (
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
)

func TestMessageSizeCountsContents(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		value any
		want  int
	}{
		"nothing":           {nil, 0},
		"number":            {int64(1), 8},
		"text":              {"abc", 3},
		"list":              {[]any{"abc", int32(1)}, 11},
		"map":               {map[string]any{"k": "abc"}, 4},
		"map of any":        {map[any]any{int8(1): "abc"}, 11},
		"described":         {amqp.Described{Descriptor: amqp.Symbol("d"), Value: "abc"}, 4},
		"array of texts":    {[]string{"abc", "de"}, 5},
		"array of symbols":  {[]amqp.Symbol{"abc", "de"}, 5},
		"array of binaries": {[][]byte{make([]byte, 1000), nil}, 1000},
		"array of lists":    {[][]any{{"abc"}, {"de"}}, 5},
		"array of maps":     {[]map[any]any{{"k": "v"}}, 2},
		"array of bytes":    {make(amqp.UbyteArray, 1000), 1000},
		"array of longs":    {make([]int64, 1000), 8000},
		"array of floats":   {make([]float32, 1000), 4000},
		"array of UUIDs":    {make([]amqp.UUID, 1000), 16000},
		"array of times":    {make([]time.Time, 1000), 8000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := &amqp.Message{ApplicationProperties: map[string]any{"key": tt.value}}
			check(t, "size", broker.MessageSize(m), len("key")+tt.want)
		})
	}
}
