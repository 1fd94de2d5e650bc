package job

// Limits. Those of IoT Hub are from its documentation ("IoT Hub quotas and throttling", "Cloud-to-device messages");
// the others keep a job's messages well below them.
const (
	MaxDeviceToCloudSize   = 256 << 10 // bytes: body and properties of a device-to-cloud message
	MaxCloudToDeviceSize   = 64 << 10  // bytes: body and properties of a cloud-to-device message
	MaxDeviceIDLength      = 128       // characters of a device identity's ID
	MaxMessageIDLength     = 128       // characters of a message ID
	MaxDeviceQueue         = 50        // cloud-to-device messages that may wait for one device
	MaxIDLength            = 96        // characters of a job ID: leaves room for device and message IDs made from it
	MaxNameLength          = 256       // characters of a job's name
	MaxStepLength          = 256       // characters of a step's name
	MaxSteps               = 500       // steps of one job: what it hands on when it continues as new stays below 2 MB
	MaxJobSize             = 60 << 10  // bytes of a job as JSON: leaves room for the properties of its announcement
	MaxReasonLength        = 1024      // characters of a reason; longer ones are cut
	MaxReceiptMessageCount = 256       // message IDs in one receipt
)
