package gates

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"testing"
	"time"

	flagger "github.com/fluxcd/flagger/pkg/apis/flagger/v1beta1"
	"github.com/hashicorp/go-retryablehttp"
)

// Of Flagger these are its own: the types of payload and Canary, and the client. Its controller is not linked, which would bring every
// metric provider that it knows; what it does with an answer is written down here.

// call asks a webhook, and returns what Flagger shows in its events when that failed: any status beyond 202 does.
func call(canary flagger.Canary, phase flagger.CanaryPhase, hook flagger.CanaryWebhook) error {
	payload := flagger.CanaryWebhookPayload{Name: canary.Name, Namespace: canary.Namespace, Phase: phase, Checksum: "85d557f47b"}
	if hook.Type == flagger.EventHook {
		payload.Metadata = map[string]string{
			"eventMessage": "Advance " + canary.Name + " canary weight 10",
			"eventType":    "Normal",
			"timestamp":    strconv.FormatInt(time.Now().UnixMilli(), 10),
		}
	}
	if hook.Metadata != nil {
		if payload.Metadata == nil {
			payload.Metadata = map[string]string{}
		}
		for key, value := range *hook.Metadata {
			payload.Metadata[key] = value
		}
	}
	body, err := json.Marshal(payload)
	if err != nil {
		return err
	}
	client := retryablehttp.NewClient()
	client.RetryMax, client.Logger = hook.Retries, nil
	client.RetryWaitMin = 10 * time.Millisecond
	client.RetryWaitMax = 100 * time.Millisecond
	timeout, err := time.ParseDuration(hook.Timeout)
	if err != nil {
		return err
	}
	client.HTTPClient.Timeout = timeout
	request, err := retryablehttp.NewRequest(http.MethodPost, hook.URL, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode > http.StatusAccepted {
		return fmt.Errorf("%d: %s", response.StatusCode, bytes.TrimSpace(answer))
	}
	return nil
}

// A rollout is a Canary under way: its weights in steps of 10 up to 50, then its promotion.
type rollout struct {
	canary flagger.Canary
	phase  flagger.CanaryPhase
	weight int
	failed int
	// What the last hook that said no answered.
	why error
}

func newRollout(canary flagger.Canary) *rollout {
	return &rollout{canary: canary, phase: flagger.CanaryPhaseProgressing}
}

func (r *rollout) hooks(kind flagger.HookType) (all []flagger.CanaryWebhook) {
	for _, hook := range r.canary.Spec.Analysis.Webhooks {
		if hook.Type == kind {
			all = append(all, hook)
		}
	}
	return all
}

func (r *rollout) pass(kind flagger.HookType) bool {
	for _, hook := range r.hooks(kind) {
		if err := call(r.canary, r.phase, hook); err != nil {
			r.why = err
			return false
		}
	}
	return true
}

// tick is one interval, in the order of Flagger's scheduler.
func (r *rollout) tick() {
	if r.phase == flagger.CanaryPhaseFailed || r.phase == flagger.CanaryPhaseSucceeded {
		return
	}
	for _, hook := range r.hooks(flagger.RollbackHook) {
		if call(r.canary, r.phase, hook) == nil {
			r.phase, r.weight = flagger.CanaryPhaseFailed, 0
			return
		}
	}
	if r.failed >= r.canary.GetAnalysisThreshold() {
		r.phase, r.weight = flagger.CanaryPhaseFailed, 0
		return
	}
	if r.weight > 0 && !r.pass(flagger.RolloutHook) {
		r.failed++
		return
	}
	if r.weight < 50 {
		if r.pass(flagger.ConfirmTrafficIncreaseHook) {
			r.weight += 10
		}
		return
	}
	if !r.pass(flagger.ConfirmPromotionHook) {
		r.phase = flagger.CanaryPhaseWaitingPromotion
		return
	}
	r.phase, r.weight = flagger.CanaryPhaseSucceeded, 100
}

// canaryOf is the patch that is generated, as a Canary.
func canaryOf(t *testing.T, text []byte) flagger.Canary {
	var canary flagger.Canary
	strictly(t, text, &canary)
	canary.Namespace = "shop"
	canary.Spec.Analysis.Threshold = 1_000_000
	return canary
}
