package jobs

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/hubjobs/hubjobs/job"
)

// Limits of what a workflow may say about itself in the web UI (Temporal server 1.32, dynamic configuration
// "limit.userMetadataSummarySize" and "limit.userMetadataDetailsSize").
const (
	maxSummarySize = 400    // bytes
	maxDetailsSize = 20_000 // bytes
)

// summary is the line of a job in the web UI: "Job 1: 7 steps, requested by ann".
func summary(in job.JobInput) string {
	var by string
	if in.RequestedBy != "" {
		by = ", requested by " + in.RequestedBy
	}
	rest := fmt.Sprintf(": %s%s", Steps(len(in.Job.Steps)), by)
	return shorten(in.Job.Name, max(maxSummarySize-len(rest), 0)) + shorten(rest, maxSummarySize)
}

// Steps counts steps in words: "1 step", "7 steps".
func Steps(n int) string {
	if n == 1 {
		return "1 step"
	}
	return fmt.Sprintf("%d steps", n)
}

// details lists the steps as Markdown, as many as fit.
func details(in job.JobInput) string {
	const room = maxDetailsSize - 100 // for the line that counts what is left out
	var b strings.Builder
	b.WriteString("### Steps\n\n")
	for i, step := range in.Job.Steps {
		line := fmt.Sprintf("%d. `%s`\n", i+1, strings.ReplaceAll(step, "`", "'"))
		if b.Len()+len(line) > room {
			fmt.Fprintf(&b, "\n... and %d more\n", len(in.Job.Steps)-i)
			break
		}
		b.WriteString(line)
	}
	return b.String()
}

// shorten cuts s to at most n bytes without splitting a character.
func shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	const mark = "..."
	if n <= len(mark) {
		return ""
	}
	end := n - len(mark)
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + mark
}
