package manager

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/hubjobs/hubjobs/job"
)

// metrics counts what the manager does, for Prometheus. It has a registry of its own, so that several managers can live
// in one process.
type metrics struct {
	registry     *prometheus.Registry
	routed       prometheus.Counter
	deadLettered *prometheus.CounterVec
	feedback     *prometheus.CounterVec
	sends        *prometheus.CounterVec
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		routed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "hubjobs_routed_messages_total",
			Help: "Device-to-cloud messages that a workflow has taken.",
		}),
		deadLettered: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hubjobs_dead_lettered_messages_total",
			Help: "Device-to-cloud messages that can't be delivered, by reason.",
		}, []string{"reason"}),
		feedback: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hubjobs_feedback_records_total",
			Help: "Delivery feedback of the hub, by outcome; recorded is false when the workflow was over.",
		}, []string{"outcome", "recorded"}),
		sends: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hubjobs_cloud_to_device_sends_total",
			Help: "Cloud-to-device sends, by result: Accepted, or the kind of error.",
		}, []string{"result"}),
	}
	m.registry.MustRegister(m.routed, m.deadLettered, m.feedback, m.sends,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Routed implements router.Counter.
func (m *metrics) Routed(messages int) { m.routed.Add(float64(messages)) }

// DeadLettered implements router.Counter.
func (m *metrics) DeadLettered(reason job.Reason) {
	m.deadLettered.WithLabelValues(string(reason)).Inc()
}

// Feedback implements router.Counter.
func (m *metrics) Feedback(outcome job.Outcome, recorded bool) {
	label := "false"
	if recorded {
		label = "true"
	}
	m.feedback.WithLabelValues(string(outcome), label).Inc()
}

func (m *metrics) sent(err error) {
	result := "Accepted"
	if err != nil {
		result = job.ErrorType(err)
	}
	m.sends.WithLabelValues(result).Inc()
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}
