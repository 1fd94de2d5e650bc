package hub

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
)

// Code is the hub's number for a kind of error; its first three digits are the
// HTTP status. It is an error, to be used with errors.Is.
type Code int

// Codes (IoT Hub docs: "Troubleshoot Azure IoT Hub error codes";
// azure-iot-sdk-csharp, ErrorCode.cs).
const (
	CodeInvalidOperation      Code = 400003
	CodeArgumentInvalid       Code = 400004
	CodeArgumentNull          Code = 400005
	CodeFormatError           Code = 400006
	CodeDuplicateDevice       Code = 400011
	CodeBulkOperationFailure  Code = 400013
	CodeConnectionReplaced    Code = 400027
	CodeUnauthorizedAccess    Code = 401002
	CodeUnauthorized          Code = 401003
	CodeQuotaExceeded         Code = 403002
	CodeMaxQueueDepthExceeded Code = 403004
	CodeNotInTier             Code = 403010
	CodeDeviceNotFound        Code = 404001
	CodeJobNotFound           Code = 404002
	CodeModuleNotFound        Code = 404010
	CodeDeviceNotOnline       Code = 404103
	CodeConnectionClosed      Code = 404104
	CodeDeviceAlreadyExists   Code = 409001
	CodeLinkCreationConflict  Code = 409002
	CodeModuleAlreadyExists   Code = 409301
	CodeJobAlreadyExists      Code = 409104
	CodePreconditionFailed    Code = 412001
	CodeMessageLockLost       Code = 412002
	CodeMessageTooLarge       Code = 413001
	CodeTooManyDevices        Code = 413002
	CodeTooManyModules        Code = 413003
	CodeThrottling            Code = 429001
	CodeTooManyActiveJobs     Code = 429004
	CodeServerError           Code = 500001
	CodeServiceUnavailable    Code = 503001
	CodeGatewayTimeout        Code = 504101
)

var codeNames = map[Code]string{
	CodeInvalidOperation:      "InvalidOperation",
	CodeArgumentInvalid:       "ArgumentInvalid",
	CodeArgumentNull:          "ArgumentNull",
	CodeFormatError:           "IotHubFormatError",
	CodeDuplicateDevice:       "DeviceDefinedMultipleTimes",
	CodeBulkOperationFailure:  "BulkRegistryOperationFailure",
	CodeConnectionReplaced:    "ConnectionForcefullyClosedOnNewConnection",
	CodeUnauthorizedAccess:    "IotHubUnauthorizedAccess",
	CodeUnauthorized:          "IotHubUnauthorized",
	CodeQuotaExceeded:         "IotHubQuotaExceeded",
	CodeMaxQueueDepthExceeded: "DeviceMaximumQueueDepthExceeded",
	CodeNotInTier:             "OperationNotAvailableInCurrentTier",
	CodeDeviceNotFound:        "DeviceNotFound",
	CodeJobNotFound:           "JobNotFound",
	CodeModuleNotFound:        "ModuleNotFound",
	CodeDeviceNotOnline:       "DeviceNotOnline",
	CodeConnectionClosed:      "DeviceConnectionClosedRemotely",
	CodeDeviceAlreadyExists:   "DeviceAlreadyExists",
	CodeLinkCreationConflict:  "LinkCreationConflict",
	CodeModuleAlreadyExists:   "ModuleAlreadyExistsOnDevice",
	CodeJobAlreadyExists:      "JobAlreadyExists",
	CodePreconditionFailed:    "PreconditionFailed",
	CodeMessageLockLost:       "DeviceMessageLockLost",
	CodeMessageTooLarge:       "MessageTooLarge",
	CodeTooManyDevices:        "TooManyDevices",
	CodeTooManyModules:        "TooManyModulesOnDevice",
	CodeThrottling:            "ThrottlingException",
	CodeTooManyActiveJobs:     "ThrottlingMaxActiveJobCountExceeded",
	CodeServerError:           "ServerError",
	CodeServiceUnavailable:    "ServiceUnavailable",
	CodeGatewayTimeout:        "GatewayTimeout",
}

// Name returns the hub's name for the code, as in the header iothub-errorcode.
func (c Code) Name() string {
	if name, ok := codeNames[c]; ok {
		return name
	}
	return "InvalidErrorCode"
}

// Status returns the HTTP status.
func (c Code) Status() int { return int(c) / 1000 }

// Error implements error.
func (c Code) Error() string { return fmt.Sprintf("%s (%d)", c.Name(), int(c)) }

// Error is an answer of the hub that refuses something.
type Error struct {
	Code Code
	// Message says what was wrong, for people, without secrets.
	Message string
	// TrackingID names this one refusal in logs and answers.
	TrackingID string
	// RetryAfter is when to try again, for throttled calls; 0 where the hub
	// doesn't say.
	RetryAfter time.Duration

	cause error
}

// Error implements error.
func (e *Error) Error() string { return e.Code.Error() + ": " + e.Message }

// Unwrap makes errors.Is(err, code) work, and leads to the cause.
func (e *Error) Unwrap() []error {
	if e.cause == nil {
		return []error{e.Code}
	}
	return []error{e.Code, e.cause}
}

// Errorf returns an answer of the hub that refuses something, with a tracking ID
// of its own.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...), TrackingID: uuid.NewString()}
}

// ErrorBody is an Error in JSON, where the number counts and not the name: in
// answers about twins to devices (azure-iot-device-mqtt mqtt_twin_client.ts), and
// of direct methods to their callers (azure-iot-sdk-csharp,
// ExceptionHandlingHelper.cs).
type ErrorBody struct {
	ErrorCode  Code   `json:"errorCode"`
	TrackingID string `json:"trackingId"`
	Message    string `json:"message"`
	// TimestampUTC is in RFC 3339.
	TimestampUTC string `json:"timestampUtc"`
}

// Body returns the error in that form, as of now.
func (e *Error) Body() ErrorBody {
	return ErrorBody{e.Code, e.TrackingID, e.Message, time.Now().UTC().Format(time.RFC3339Nano)}
}

// AsError returns err as an answer of the hub. What the hub didn't mean to
// answer becomes CodeServerError, with the cause kept for logs.
func AsError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Code: CodeServerError, Message: "internal error", TrackingID: uuid.NewString(), cause: err}
}

// translate gives an error of the broker the hub's code: full for a queue that
// is full.
func translate(err error, full Code) error {
	if err == nil {
		return nil
	}
	for _, t := range []struct {
		kind error
		code Code
	}{
		{broker.ErrFull, full},
		{broker.ErrTooLarge, CodeMessageTooLarge},
		{broker.ErrLockLost, CodeMessageLockLost},
		{broker.ErrDeleted, CodeDeviceNotFound},
		{broker.ErrClosed, CodeServiceUnavailable},
		{store.ErrClosed, CodeServiceUnavailable},
	} {
		if errors.Is(err, t.kind) {
			return &Error{Code: t.code, Message: err.Error(), TrackingID: uuid.NewString(), cause: err}
		}
	}
	return err
}
